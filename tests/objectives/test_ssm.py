import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mg3d.objectives.ssm import ssm_loss


def _unit(*degrees: float) -> Tensor:
    """Unit vectors in the plane, [S, 2]."""
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def test_by_hand() -> None:
    """Reports of 2 and 1 sentences: G = [[cos 0], [cos 90]] = [[1], [0]] (similar, dissimilar),
    Ĝ = [[cos 60], [cos 45]]: (|0.5 − 1| + |0.7071|) / (2 · 1).
    """
    text = torch.stack([_unit(0, 90), _unit(0, 33)])
    visual = torch.stack([_unit(60, 45), _unit(0, 0)]) * 3
    mask = torch.tensor([[True, True], [True, False]])
    loss = ssm_loss(visual, text, mask, 0.9, 0.6)
    assert loss.item() == pytest.approx((0.5 + math.sqrt(0.5)) / 2, abs=1e-9)


def test_pairs_in_between_count_in_the_denominator_only_and_have_no_gradient() -> None:
    text = torch.stack([_unit(0, 0), _unit(40, 90)])  # cos 40° = 0.77: in the dead band
    visual = torch.stack([_unit(10, 20), _unit(50, 60)]).requires_grad_()
    mask = torch.tensor([[True, False], [True, True]])
    loss = ssm_loss(visual, text, mask, 0.9, 0.6)
    assert loss.item() == pytest.approx(math.cos(math.radians(50)) / 2, abs=1e-9)
    loss.backward()
    reached = visual.grad.abs().sum(-1) > 0
    assert reached.tolist() == [[True, False], [False, True]]


def test_gradient_pulls_identical_sentences_together_and_others_apart() -> None:
    visual = torch.stack([_unit(0), _unit(60)]).requires_grad_()
    mask = torch.ones(2, 1, dtype=torch.bool)
    for text_angle, direction in ((0.0, 1.0), (90.0, -1.0)):
        text = torch.stack([_unit(0), _unit(text_angle)]).requires_grad_()
        loss = ssm_loss(visual, text, mask, 0.9, 0.6)
        (gradient,) = torch.autograd.grad(loss, visual)
        stepped = visual - 0.01 * gradient
        closer = F.cosine_similarity(stepped[0], stepped[1]) - math.cos(math.pi / 3)
        assert closer.item() * direction > 0
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(ssm_loss(visual, text, mask, 0.9, 0.6), text)


def _loop(visual: Tensor, text: Tensor, mask: Tensor, high: float, low: float) -> Tensor:
    """Equation 4.7 as written, pair by pair."""
    losses = []
    for i in range(len(visual)):
        for j in range(i + 1, len(visual)):
            t_i, t_j = text[i][mask[i]], text[j][mask[j]]
            v_i, v_j = visual[i][mask[i]], visual[j][mask[j]]
            if len(t_i) == 0 or len(t_j) == 0:
                continue
            g = F.cosine_similarity(t_i[:, None], t_j[None], dim=-1)
            g_hat = F.cosine_similarity(v_i[:, None], v_j[None], dim=-1)
            p, q = (g >= high).double(), (g <= low).double()
            losses.append((g_hat * (p + q) - g * p).abs().sum() / (len(t_i) * len(t_j)))
    return torch.stack(losses).mean()


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    visual = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    text = torch.randn(4, 5, 3, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[3], [5], [0], [1]])
    return visual, text, mask


def test_batched_equals_the_loop() -> None:
    visual, text, mask = _batch()
    ours, loop = ssm_loss(visual, text, mask, 0.7, 0.2), _loop(visual, text, mask, 0.7, 0.2)
    torch.testing.assert_close(ours, loop, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        torch.autograd.grad(ours, visual)[0], torch.autograd.grad(loop, visual)[0]
    )


def test_pairs_across_ranks_count_though_ranks_have_other_numbers_of_sentences(
    on_ranks: Callable[..., Tensor],
) -> None:
    visual, text, mask = _batch()
    whole = ssm_loss(visual, text, mask, 0.7, 0.2)
    # The second rank's longest report has one sentence: it pads to the first one's five.
    parts = ((slice(0, 2), slice(0, 5)), (slice(2, 4), slice(0, 1)))
    shared = on_ranks(
        2,
        lambda r, gather: ssm_loss(
            visual[parts[r]], text[parts[r]], mask[parts[r]], 0.7, 0.2, gather
        ),
    )
    torch.testing.assert_close(shared, whole)
    torch.testing.assert_close(
        torch.autograd.grad(shared, visual)[0], torch.autograd.grad(whole, visual)[0]
    )


@pytest.mark.parametrize("num_samples", [1, 3])
def test_no_pairs_give_zero_with_a_safe_graph(num_samples: int) -> None:
    visual = torch.zeros(num_samples, 2, 4, requires_grad=True)
    for mask in (torch.zeros(num_samples, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)):
        if len(mask) != num_samples:
            continue
        loss = ssm_loss(visual, torch.zeros(num_samples, 2, 4), mask, 0.9, 0.6)
        (gradient,) = torch.autograd.grad(loss, visual)
        assert loss.item() == 0
        assert gradient.abs().max() == 0
