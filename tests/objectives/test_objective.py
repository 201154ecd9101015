from types import SimpleNamespace

import pytest
import torch

from mg3d.objectives.objective import objective
from mg3d.params import Objective


def _outputs() -> SimpleNamespace:
    """Chosen so that each loss is a round number."""
    eye = torch.eye(2)
    return SimpleNamespace(
        mlm_logits=torch.zeros(1, 8, requires_grad=True),  # ln 8
        sfr_prediction=torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]),
        sfr_target=torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]),  # (1 + 0) / 2
        reconstruction=torch.full((2, 1, 2, 2, 2), 3.0),  # 9
        cml_fused=eye * 0,  # ln 2
        cml_unimodal=eye,
        dfa_image=eye * 0,
        dfa_text=eye,
        ssm_visual=torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]),
        ssm_text=torch.ones(2, 1, 3),  # |0 − 1|
        itc_image=eye * 0,
        itc_text=eye,
        sentence_mask=torch.ones(2, 1, dtype=torch.bool),
    )


INPUTS = SimpleNamespace(
    mlm_labels=torch.tensor([[-100, 5], [-100, -100]]),
    volume=torch.zeros(2, 1, 2, 2, 2),
    voxel_mask=torch.ones(2, 1, 2, 2, 2, dtype=torch.bool),
)
LN2 = 0.6931472
EXPECTED = {"mlm": 3 * LN2, "sfr": 0.5, "mim": 9, "cml": LN2, "dfa": LN2, "ssm": 1, "itc": LN2}


def test_total_is_the_weighted_sum_of_the_named_terms() -> None:
    """The paper's weights: L = mlm + 0.1 sfr + mim + 0.1 (cml + dfa + ssm)."""
    losses = objective(_outputs(), INPUTS, Objective())
    assert list(losses) == ["mlm", "sfr", "mim", "cml", "dfa", "ssm", "total"]
    for term, loss in losses.items():
        if term != "total":
            assert loss.item() == pytest.approx(EXPECTED[term], abs=1e-5), term
    expected = 3 * LN2 + 0.1 * 0.5 + 9 + 0.1 * (LN2 + LN2 + 1)
    assert losses["total"].item() == pytest.approx(expected, abs=1e-5)


def test_a_weight_scales_the_gradient_and_zero_removes_the_term() -> None:
    gradients = []
    for weight in (1.0, 0.25):
        outputs = _outputs()
        losses = objective(outputs, INPUTS, Objective(mlm_weight=weight))
        losses["total"].backward()
        gradients.append(outputs.mlm_logits.grad)
    torch.testing.assert_close(gradients[1], gradients[0] / 4)
    only = objective(
        SimpleNamespace(itc_image=torch.zeros(2, 2), itc_text=torch.eye(2)),
        SimpleNamespace(),
        Objective(
            mlm_weight=0, sfr_weight=0, mim_weight=0, cml_weight=0, dfa_weight=0, ssm_weight=0,
            itc_weight=2,
        ),
    )  # fmt: skip
    assert list(only) == ["itc", "total"]
    assert only["total"].item() == pytest.approx(2 * LN2, abs=1e-5)
