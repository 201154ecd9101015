"""What a computation holds: torch's memory is not Python's, so every operation is watched."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Memory(TorchDispatchMode):
    """Bytes of the storages that live at once and were made inside, at the highest; and the largest
    tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        old = {x.untyped_storage()._cdata for x in tree_leaves(args) if isinstance(x, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key in old or key in self._alive:
                    continue
                self._alive.add(key)
                self._now += size
                weakref.finalize(storage, self._free, key, size)
                self.peak = max(self.peak, self._now)
                self.largest = max(self.largest, size)
        return out

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size
