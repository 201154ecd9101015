"""Ranks without processes: threads that meet in a gather."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

Loss = Callable[[int, Callable[[Tensor], Tensor]], Tensor]


@pytest.fixture
def on_ranks() -> Callable[[int, Loss], Tensor]:
    """``on_ranks(W, loss)`` is the mean over ranks r of ``loss(r, gather)``.

    All ranks share one graph and their gathers are differentiable, so the gradient of this mean is
    what DDP computes: the average over ranks, with gradients summed in the gather's backward.
    """

    def run(num_ranks: int, loss: Loss) -> Tensor:
        rows: list[Tensor | None] = [None] * num_ranks
        barrier = threading.Barrier(num_ranks, timeout=20)

        def one(rank: int) -> Tensor:
            def gather(x: Tensor) -> Tensor:
                rows[rank] = x
                barrier.wait()
                everyone = torch.cat(rows)
                barrier.wait()
                return everyone

            return loss(rank, gather)

        with ThreadPoolExecutor(num_ranks) as pool:
            return torch.stack(list(pool.map(one, range(num_ranks)))).mean()

    return run
