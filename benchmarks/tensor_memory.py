"""How much memory a computation on tensors takes: the same figure on every machine and in every run."""

import weakref
from typing import Any, Self

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Records what operations allocate while it is active: the largest tensor, and the most bytes alive at once.

    What was there before does not count, nor what an operation needs inside, such as LAPACK's workspace.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0  # elements
        self.peak_bytes = 0
        self._alive: dict[int, int] = {}
        self._before: set[int] = set()

    def __enter__(self) -> Self:
        super().__enter__()  # torch does not say what it returns
        return self

    @property
    def alive_bytes(self) -> int:
        """What is there now of what was allocated since the start."""
        return sum(self._alive.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._before.update(
            storage._cdata for storage in _storages((args, kwargs)) if storage._cdata not in self._alive
        )
        made = func(*args, **kwargs)
        for tensor in _tensors(made):
            self.largest = max(self.largest, tensor.numel())
        for storage in _storages(made):
            if storage._cdata not in self._alive and storage._cdata not in self._before:
                self._alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
        return made


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storages(tree: Any) -> list[UntypedStorage]:
    return [tensor.untyped_storage() for tensor in _tensors(tree)]
