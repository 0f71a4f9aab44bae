"""Imports with the garbage collector at rest."""

import gc
import sys

import pytest

from parablock_ray.importing import fast_imports


def test_nothing_is_forgotten_where_nothing_was_imported() -> None:
    before = gc.get_freeze_count()
    with fast_imports():
        import gc as known  # noqa: F401
    assert gc.get_freeze_count() == before


def test_the_collector_rests_meanwhile_and_forgets_what_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_freeze_count()
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with fast_imports():
        assert not gc.isenabled()
        import this  # noqa: F401

        made = [[] for _ in range(1000)]
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    assert gc.isenabled()
    assert frozen >= before + len(made)


def test_it_works_again_after_an_import_that_fails() -> None:
    with pytest.raises(ModuleNotFoundError), fast_imports():
        import no_such_module  # noqa: F401
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with fast_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
