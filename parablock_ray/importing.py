"""Imports that take seconds, in fewer of them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fast_imports() -> Iterator[None]:
    """Python's garbage collector stands still meanwhile, and never looks at what was imported. It would walk all of
    those objects time and again, a tenth of the time that torch and transformers take, for hardly any garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
