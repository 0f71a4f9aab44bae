"""How much memory a computation on tensors takes: the same figure on every machine and in every run."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Records what operations allocate while it is active: the largest tensor, and the most bytes alive at once.

    What an operation needs inside, such as LAPACK's workspace, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0  # elements
        self.peak_bytes = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._record(tensor)
        return made

    def _record(self, tensor: Tensor) -> None:
        self.largest = max(self.largest, tensor.numel())
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:
            self._alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, storage._cdata, None)
            self.peak_bytes = max(self.peak_bytes, sum(self._alive.values()))
