"""Masked image modelling (spec/model 4.3)."""

import torch
from torch import Generator, Tensor

from mg3d.objectives.contrastive import Gather, full_precision, one_rank
from mg3d.objectives.mean import mean_over_ranks

#: What the published loss divides by, whatever fraction is masked.
PUBLISHED_FRACTION = 0.5


def mask_blocks(
    volume: Tensor, fraction: float, block_voxels: int, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Set whole cubic blocks of each volume to 0.

    volume [B, 1, D, H, W] -> (masked volume, voxel mask bool, True = masked), both of its shape.
    Exactly round(fraction · blocks) blocks of each sample are masked, chosen uniformly and for each
    sample anew. Draws on the generator's device. Raises ValueError if the blocks do not fill the
    volume, or if the fraction masks none or all of them.
    """
    batch, _, *shape = volume.shape
    if any(size % block_voxels for size in shape):
        raise ValueError(
            f"objective.mim_block_voxels {block_voxels} does not divide the volume {tuple(shape)}: "
            "use a common divisor, e.g. 16 or 8"
        )
    grid = [size // block_voxels for size in shape]
    num_blocks = grid[0] * grid[1] * grid[2]
    num_masked = round(fraction * num_blocks)
    if not 0 < num_masked < num_blocks:
        raise ValueError(
            f"objective.mim_masked_fraction {fraction} masks {num_masked} of {num_blocks} blocks: "
            "use smaller blocks (objective.mim_block_voxels) or another fraction"
        )
    device = generator.device if generator is not None else volume.device
    order = torch.rand(batch, num_blocks, generator=generator, device=device).argsort(dim=1)
    blocks = torch.zeros(batch, num_blocks, dtype=torch.bool, device=device)
    blocks.scatter_(1, order[:, :num_masked], True)
    mask = blocks.view(batch, 1, *grid).to(volume.device)
    for axis in (2, 3, 4):
        mask = mask.repeat_interleave(block_voxels, dim=axis)
    return volume.masked_fill(mask, 0), mask


def mim_loss(
    reconstruction: Tensor, volume: Tensor, voxel_mask: Tensor, gather: Gather = one_rank
) -> Tensor:
    """Σ m (x̂ − x)² / Σ m: the mean squared error over the masked voxels of all ranks.

    All [b, 1, D, H, W].
    """
    squared = (full_precision(reconstruction) - volume).square()
    return mean_over_ranks((squared * voxel_mask).sum(), voxel_mask.sum(), gather)


def mim_loss_as_published(reconstruction: Tensor, volume: Tensor, voxel_mask: Tensor) -> Tensor:
    """Σ m (x̂ − x)² / (0.5 · all voxels): `mim_loss` only if exactly half of them are masked.

    All [b, 1, D, H, W]. With a fraction f masked it is f / 0.5 times `mim_loss`.
    """
    squared = (full_precision(reconstruction) - volume).square()
    return (squared * voxel_mask).mean() / PUBLISHED_FRACTION
