"""Symmetric InfoNCE over the batch of all ranks: what CML, DFA and ITC share (spec/model 4.5)."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

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


def info_nce(
    left: Tensor,
    right: Tensor,
    temperature: float,
    gather: Gather = one_rank,
    chunk: int | None = None,
) -> Tensor:
    """½(CE over rows + CE over columns) of ``cos(left_i, right_j) / temperature``; i = j matches.

    left, right [b, E], not yet normalised -> scalar; all ranks' rows are each other's negatives.
    With ``chunk`` the [n, n] similarities of n = all rows are never held, only chunk² at a time, at
    the price of computing them again on the way back; value and gradient are the same.
    """
    with torch.autocast(left.device.type, enabled=False):
        left = gather(F.normalize(full_precision(left), dim=-1, eps=EPS))
        right = gather(F.normalize(full_precision(right), dim=-1, eps=EPS))
        if chunk is not None:
            loss: Tensor = _InTiles.apply(left, right, temperature, chunk)
            return loss
        logits = left @ right.T / temperature
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class _InTiles(torch.autograd.Function):
    """InfoNCE of normalised rows [n, E] in O(n E + chunk²) memory.

    CE over rows is logsumexp_j(z_ij) − z_ii, and a logsumexp can be summed up tile by tile. With
    P and Q the softmax of z over rows and over columns, dloss/dz = (P + Q − 2 I) / 2n.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, temperature: float, chunk: int) -> Tensor:
        rows = left.new_full((len(left),), -torch.inf)
        columns = rows.clone()
        for i, j in _tiles(len(left), chunk):
            logits = left[i] @ right[j].T / temperature
            rows[i] = rows[i].logaddexp(logits.logsumexp(1))
            columns[j] = columns[j].logaddexp(logits.logsumexp(0))
        ctx.save_for_backward(left, right, rows, columns)
        ctx.temperature, ctx.chunk = temperature, chunk
        matching = torch.linalg.vecdot(left, right) / temperature
        return ((rows + columns) / 2 - matching).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        left, right, rows, columns = ctx.saved_tensors
        with torch.autocast(left.device.type, enabled=False):
            d_left, d_right = -2 * right, -2 * left
            for i, j in _tiles(len(left), ctx.chunk):
                logits = left[i] @ right[j].T / ctx.temperature
                pull = (logits - rows[i, None]).exp() + (logits - columns[j]).exp()
                d_left[i] += pull @ right[j]
                d_right[j] += pull.T @ left[i]
            scale = gradients[0] / (2 * len(left) * ctx.temperature)
            return d_left * scale, d_right * scale, None, None


def _tiles(size: int, chunk: int) -> Iterator[tuple[slice, slice]]:
    """The squares of ``chunk`` rows and columns that cover a matrix [size, size]."""
    parts = [slice(start, start + chunk) for start in range(0, size, chunk)]
    return product(parts, parts)
