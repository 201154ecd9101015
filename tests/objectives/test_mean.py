"""A mean over ranks with unequal shares, by hand, and what reads it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mg3d.objectives.mean import mean_over_ranks
from mg3d.objectives.mim import mim_loss
from mg3d.objectives.sfr import sfr_loss

OnRanks = Callable[..., Tensor]


def test_by_hand(on_ranks: OnRanks) -> None:
    """Sums 6 and 1 of 3 and 1 items: 7 / 4, where the mean of the means is 1.5."""
    totals, counts = torch.tensor([6.0, 1.0], requires_grad=True), (3, 1)
    mean = on_ranks(2, lambda r, gather: mean_over_ranks(totals[r], counts[r], gather))
    assert mean.item() == pytest.approx(7 / 4)
    mean.backward()
    assert totals.grad.tolist() == pytest.approx([1 / 4, 1 / 4])


def test_one_item_on_one_of_four_ranks(on_ranks: OnRanks) -> None:
    mean = on_ranks(
        4, lambda r, gather: mean_over_ranks(torch.tensor(3.0 * (r == 2)), r == 2, gather)
    )
    assert mean.item() == 3


def test_nothing_anywhere_is_zero(on_ranks: OnRanks) -> None:
    assert on_ranks(2, lambda _, gather: mean_over_ranks(torch.zeros(()), 0, gather)).item() == 0


@pytest.mark.parametrize("cut", [1, 3])
def test_reconstruction_and_sentences_over_uneven_ranks(cut: int, on_ranks: OnRanks) -> None:
    torch.manual_seed(0)
    rebuilt = torch.randn(4, 1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    volume, masked = torch.rand(4, 1, 2, 2, 2).double(), torch.rand(4, 1, 2, 2, 2) < 0.4
    predicted = torch.randn(4, 3, 8, dtype=torch.float64, requires_grad=True)
    target, valid = torch.randn(4, 3, 8).double(), torch.rand(4, 3) < 0.7
    parts = (slice(0, cut), slice(cut, 4))

    def losses(part: slice, *gather: Callable[[Tensor], Tensor]) -> Tensor:
        mim = mim_loss(rebuilt[part], volume[part], masked[part], *gather)
        sfr = sfr_loss(predicted[part], target[part], valid[part], "mean", *gather)
        return torch.stack([mim, sfr])

    whole = losses(slice(0, 4)).sum()
    shared = on_ranks(2, lambda r, gather: losses(parts[r], gather).sum())
    torch.testing.assert_close(shared, whole, rtol=1e-12, atol=0)
    for found, expected in zip(
        torch.autograd.grad(shared, (rebuilt, predicted)),
        torch.autograd.grad(whole, (rebuilt, predicted)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
