"""Where tensors are computed on: the one function that decides, and how batches get there."""

from typing import Any

import torch
from torch import Tensor


def best() -> torch.device:
    """The first GPU that CUDA shows to this process, else the CPU.

    Which GPU that is, is the caller's choice: `CUDA_VISIBLE_DEVICES` (see `flows.evaluate`).
    """
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def moved(batch: Any, device: torch.device) -> Any:
    """A tensor, or a tuple or list of such, on ``device``; anything else as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, tuple | list):
        return type(batch)(moved(part, device) for part in batch)
    return batch
