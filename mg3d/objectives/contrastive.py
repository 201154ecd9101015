"""Symmetric InfoNCE over the batch of all ranks: what CML, DFA and ITC share (spec/model 4.5)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: [b, ...] of each rank -> [W b, ...] of all, in rank order, with the exact gradient.
Gather = Callable[[Tensor], Tensor]

#: Floor of a vector's norm: a zero vector has similarity 0, and no NaN in half precision.
EPS = 1e-6


def one_rank(x: Tensor) -> Tensor:
    """The gather of a single process."""
    return x


def full_precision(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def info_nce(left: Tensor, right: Tensor, temperature: float, gather: Gather = one_rank) -> Tensor:
    """½(CE over rows + CE over columns) of ``cos(left_i, right_j) / temperature``; i = j matches.

    left, right [b, E], not yet normalised -> scalar; all ranks' rows are each other's negatives.
    """
    with torch.autocast(left.device.type, enabled=False):
        left = gather(F.normalize(full_precision(left), dim=-1, eps=EPS))
        right = gather(F.normalize(full_precision(right), dim=-1, eps=EPS))
        logits = left @ right.T / temperature
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
