"""The mean over the batch of all ranks, however unevenly they share it."""

import torch
from torch import Tensor

from mg3d.objectives.contrastive import Gather, one_rank


def mean_over_ranks(total: Tensor, count: Tensor | int, gather: Gather = one_rank) -> Tensor:
    """This rank's part of Σ total / Σ count, both scalars summed over the ranks.

    Each rank divides its sum by the mean count per rank. So the average of the ranks' results, to
    which DDP's gradient belongs, is the mean over everything; a mean of the ranks' own means would
    weigh an item of a small rank more. 0 where nothing is counted anywhere.
    """
    counts = gather(torch.as_tensor(count, device=total.device).reshape(1))
    return total / (counts.sum().clamp(min=1) / len(counts)).to(total.dtype)
