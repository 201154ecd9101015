import pytest
import torch

from mg3d.objectives.sfr import sfr_loss

PREDICTION = torch.tensor(
    [[[2.0, 0.0], [3.0, 4.0], [9.0, 9.0]], [[0.0, 1.0], [5.0, 5.0], [5.0, 5.0]]]
).double()
TARGET = torch.tensor(
    [[[5.0, 0.0], [1.0, 0.0], [-9.0, 9.0]], [[0.0, -2.0], [0.0, 0.0], [0.0, 0.0]]]
).double()
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_by_hand() -> None:
    """1 − cos is 0 and 0.4 in the first report, 2 in the second; masked sentences do not count."""
    assert sfr_loss(PREDICTION, TARGET, MASK).item() == pytest.approx((0.4 + 2) / 2)
    assert sfr_loss(PREDICTION, TARGET, MASK, "mean").item() == pytest.approx((0.2 + 2) / 2)


def test_gradient_reaches_valid_predictions_only() -> None:
    prediction, target = PREDICTION.clone().requires_grad_(), TARGET.clone().requires_grad_()
    sfr_loss(prediction, target, MASK).backward()
    assert target.grad is None
    assert (prediction.grad.abs().sum(-1) > 0).tolist() == [[False, True, False], [False] * 3]
    # d(1 − cos)/dp for p = (3, 4), t = (1, 0), over two reports: −(t − cos · p̂)/|p| / 2
    expected = -(torch.tensor([1.0, 0.0]) - 0.6 * torch.tensor([0.6, 0.8])) / 5 / 2
    torch.testing.assert_close(prediction.grad[0, 1], expected.double())


def test_zero_vectors_and_empty_reports_are_finite() -> None:
    prediction = torch.zeros(2, 3, 8, requires_grad=True)
    for mask in (torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)):
        for reduction in ("sum", "mean"):
            loss = sfr_loss(prediction, torch.zeros(2, 3, 8), mask, reduction)
            assert loss.isfinite()
            assert torch.autograd.grad(loss, prediction)[0].isfinite().all()


def test_range() -> None:
    torch.manual_seed(0)
    loss = sfr_loss(torch.randn(4, 5, 8), torch.randn(4, 5, 8), torch.ones(4, 5, dtype=torch.bool))
    assert 0 <= loss <= 2 * 5
