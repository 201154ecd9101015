import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mg3d.objectives.cml import cml_loss
from mg3d.objectives.contrastive import info_nce
from mg3d.objectives.dfa import dfa_loss
from mg3d.objectives.itc import itc_loss


def test_two_by_two_by_hand() -> None:
    """cos = [[1, 0.6], [0, 0.8]], τ = 0.5: logits [[2, 1.2], [0, 1.6]]."""
    left = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    right = torch.tensor([[5.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    rows = (math.log(1 + math.exp(1.2 - 2)) + math.log(1 + math.exp(0 - 1.6))) / 2
    columns = (math.log(1 + math.exp(0 - 2)) + math.log(1 + math.exp(1.2 - 1.6))) / 2
    loss = info_nce(left, right, temperature=0.5)
    assert loss.item() == pytest.approx((rows + columns) / 2, abs=1e-12)
    assert info_nce(right, left, 0.5).item() == pytest.approx(loss.item(), abs=1e-12)


@pytest.mark.parametrize("num_rows", [1, 2, 7])
def test_features_that_are_all_alike_cost_the_log_of_their_number(num_rows: int) -> None:
    same = torch.ones(num_rows, 5)
    assert info_nce(same, same, 0.1).item() == pytest.approx(math.log(num_rows), abs=1e-5)


def test_gradient_equals_that_of_the_formula_and_descends() -> None:
    torch.manual_seed(0)
    left = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    right = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.1), (left, right))
    loss = info_nce(left, right, 0.1)
    g_left, g_right = torch.autograd.grad(loss, (left, right))
    assert info_nce(left - 0.01 * g_left, right - 0.01 * g_right, 0.1) < loss


def test_length_does_not_matter() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(info_nce(left * 7, right * 0.2, 0.1), info_nce(left, right, 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_vectors_are_finite_in_any_precision(dtype: torch.dtype) -> None:
    left = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    right = torch.ones(3, 4, dtype=dtype)
    loss = info_nce(left, right, 0.1)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-5)
    loss.backward()
    assert left.grad.isfinite().all()


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_together_are_one_large_batch(
    on_ranks: Callable[..., Tensor], num_ranks: int
) -> None:
    torch.manual_seed(0)
    left = torch.randn(2 * num_ranks, 4, dtype=torch.float64, requires_grad=True)
    right = torch.randn(2 * num_ranks, 4, dtype=torch.float64, requires_grad=True)
    whole = info_nce(left, right, 0.1)
    shared = on_ranks(
        num_ranks, lambda r, gather: info_nce(left[2 * r :][:2], right[2 * r :][:2], 0.1, gather)
    )
    torch.testing.assert_close(shared, whole)
    for a, b in zip(
        torch.autograd.grad(shared, (left, right)),
        torch.autograd.grad(whole, (left, right)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("term", [cml_loss, dfa_loss, itc_loss])
def test_each_term_contrasts_over_all_ranks_at_its_temperature(
    term: Callable[..., Tensor], on_ranks: Callable[..., Tensor]
) -> None:
    """cos is the identity matrix: log(1 + (n - 1) exp(-1/τ)) in both directions."""
    left = (torch.eye(4, dtype=torch.float64) * 3).requires_grad_()
    right = torch.eye(4, dtype=torch.float64).requires_grad_()
    assert term(left, right, 0.5).item() == pytest.approx(math.log(1 + 3 * math.exp(-2)), abs=1e-9)
    halves = on_ranks(2, lambda r, gather: term(left[2 * r :][:2], right[2 * r :][:2], 0.5, gather))
    assert halves.item() == pytest.approx(math.log(1 + 3 * math.exp(-2)), abs=1e-9)
    g_left, g_right = torch.autograd.grad(halves, (left, right))
    # Both sides learn; a row's gradient is orthogonal to it, as for any function of the cosine.
    for side, gradient in ((left, g_left), (right, g_right)):
        assert gradient.abs().sum(1).min() > 0
        torch.testing.assert_close(
            F.cosine_similarity(side, gradient),
            torch.zeros(4, dtype=torch.float64),
            atol=1e-6,
            rtol=0,
        )
