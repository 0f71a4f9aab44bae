"""Imports that take seconds, in fewer of them."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fast_imports() -> Iterator[None]:
    """Python's garbage collector stands still meanwhile, and never looks at what was imported. It would walk all of
    those objects time and again, a tenth of the time that torch and transformers take, for hardly any garbage."""
    was_on, num_before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > num_before:
            gc.freeze()
        if was_on:
            gc.enable()
