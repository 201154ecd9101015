"""Ranks: how a process learns which one it is, and how rows of tensors meet.

Started by torchrun, a process joins the group (gloo on CPU, nccl on CUDA). Started alone it is the
only rank, there is no group, and every function here is the identity.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process, 0-based; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this rank prints, writes files and reports metrics."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def process_group(timeout_s: float = 1800.0) -> Iterator[torch.device]:
    """Join the ranks that torchrun started and yield this rank's device; leave the group after.

    A rank that waits longer than ``timeout_s`` for another raises instead of hanging. A group that
    exists already (a test, a notebook) is used and left alone.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    ours = "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized()
    if ours:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s)
        )
    try:
        yield device
    finally:
        if ours:
            dist.destroy_process_group()


@contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """Instead of ending the process, SIGTERM turns what is yielded from False to True.

    In threads other than the main one, which cannot handle signals, nothing changes.
    """
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: noted.set())
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def gather(rows: Tensor) -> Tensor:
    """Concatenate ``rows`` [n, ...] of all ranks along axis 0, in rank order.

    Ranks may bring different ``n`` (also 0); the other axes and the dtype are equal. The gradient
    is exact: each rank's rows receive the sum over ranks of the gradients of the gathered rows.
    So if every rank computes the same global loss from gathered rows, DDP's mean over ranks gives
    the gradient of a single process (without the sum it would be 1/W of it, spec/model 5).
    """
    return _gathered(rows, _Gather)


def gather_own_gradient(rows: Tensor) -> Tensor:
    """:func:`gather` whose gradient is only that of this rank's loss: the published one.

    If every rank computes the same global loss from gathered rows, DDP's mean over ranks gives 1/W
    of the gradient of a single process (spec/model 5).
    """
    return _gathered(rows, _GatherOwnGradient)


def _gathered(rows: Tensor, function: type["_Gather"]) -> Tensor:
    if world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, counts[0].new_tensor([len(rows)]))
    gathered: Tensor = function.apply(rows, [int(count) for count in counts])
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # collectives want equal shapes
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[rank()], None


class _GatherOwnGradient(_Gather):
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].split(ctx.counts)[rank()], None
