import pytest
import torch

from mg3d.objectives.mim import mask_blocks, mim_loss


@pytest.mark.parametrize(
    ("shape", "block", "fraction", "num_masked"),
    [
        ((128, 96, 128), 16, 0.5, 192),
        ((64, 64, 64), 16, 0.25, 16),
        ((64, 64, 64), 16, 0.75, 48),
        ((32, 64, 96), 8, 0.3, 115),  # of 384
        ((32, 32, 32), 16, 0.5, 4),
    ],
)
def test_exactly_the_fraction_in_whole_blocks(
    shape: tuple[int, int, int], block: int, fraction: float, num_masked: int
) -> None:
    volume = torch.rand(3, 1, *shape) + 0.1
    masked, mask = mask_blocks(volume, fraction, block, torch.Generator().manual_seed(0))
    assert mask.dtype == torch.bool
    assert mask.shape == masked.shape == volume.shape
    blocks = mask.unfold(2, block, block).unfold(3, block, block).unfold(4, block, block)
    blocks = blocks.flatten(5).float().mean(-1)
    assert set(blocks.unique().tolist()) == {0.0, 1.0}  # no block is half masked
    assert blocks.flatten(1).sum(1).tolist() == [num_masked] * 3
    assert torch.equal(masked == 0, mask)
    assert torch.equal(masked[~mask], volume[~mask])  # bit-identical outside
    assert not torch.equal(mask[0], mask[1])  # each sample has its own


def test_every_block_is_as_likely_and_the_generator_alone_decides() -> None:
    volume = torch.ones(400, 1, 32, 32, 32)
    torch.manual_seed(1)
    _, mask = mask_blocks(volume, 0.25, 16, torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    _, again = mask_blocks(volume, 0.25, 16, torch.Generator().manual_seed(5))
    _, other = mask_blocks(volume, 0.25, 16, torch.Generator().manual_seed(6))
    assert torch.equal(mask, again)
    assert not torch.equal(mask, other)
    rate = mask[:, 0, ::16, ::16, ::16].float().mean(0)
    assert rate.min() > 0.18
    assert rate.max() < 0.32


@pytest.mark.parametrize(
    ("block", "fraction", "message"),
    [
        (12, 0.5, r"mim_block_voxels 12 does not divide the volume \(32, 32, 32\)"),
        (32, 0.5, "masks 0 of 1 blocks: use smaller blocks"),
        (16, 0.01, "mim_masked_fraction 0.01 masks 0 of 8 blocks"),
        (16, 0.99, "mim_masked_fraction 0.99 masks 8 of 8 blocks"),
    ],
)
def test_a_mask_that_cannot_be_made_says_why(block: int, fraction: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_blocks(torch.zeros(1, 1, 32, 32, 32), fraction, block)


def test_loss_by_hand_and_its_gradient() -> None:
    """Masked errors 2 and −1: (4 + 1) / 2. The error at an unmasked voxel does not count."""
    volume = torch.tensor([1.0, 1.0, 0.0, 0.5]).view(1, 1, 1, 2, 2)
    reconstruction = torch.tensor([3.0, 0.0, 9.0, 0.5]).view(1, 1, 1, 2, 2).requires_grad_()
    mask = torch.tensor([True, True, False, False]).view(1, 1, 1, 2, 2)
    loss = mim_loss(reconstruction, volume, mask)
    assert loss.item() == 2.5
    loss.backward()
    assert reconstruction.grad.flatten().tolist() == [2.0, -1.0, 0.0, 0.0]  # 2 (x̂ − x) / 2


def test_no_masked_voxel_is_finite() -> None:
    reconstruction = torch.ones(1, 1, 2, 2, 2, requires_grad=True)
    loss = mim_loss(reconstruction, torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2).bool())
    loss.backward()
    assert loss.item() == 0
