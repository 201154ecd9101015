"""Random reports through the whole model, and three invariants of spec/model 7 that need it."""

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import mg3d
from mg3d.models.mg3d import MG3D, Inputs
from mg3d.objectives.objective import objective
from mg3d.params import Model, Objective

MakeInputs = Callable[..., Inputs]
ALL = Objective(itc_weight=1.0)


@pytest.fixture(scope="module")
def built(tiny_model: Model) -> MG3D:
    torch.manual_seed(0)
    return MG3D(tiny_model, ALL)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.lists(st.integers(1, 5), max_size=5), min_size=1, max_size=3),
    masked=st.sampled_from(("some", "all", "none")),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_reports_give_finite_losses_and_gradients(
    built: MG3D,
    make_inputs: MakeInputs,
    lengths: list[list[int]],
    masked: str,
    half: bool,
    seed: int,
) -> None:
    """Spec/model invariant 30: one sentence, empty reports, every word masked or none, one sample;
    float32 and bfloat16.
    """
    inputs = make_inputs(lengths, seed=seed)
    if masked != "some":
        chosen = (inputs.sentence_index >= 0) & (masked == "all")
        inputs = replace(
            inputs,
            masked_ids=torch.where(chosen, 4, inputs.input_ids),
            mlm_labels=torch.where(chosen, inputs.input_ids, -100),
        )
    built.zero_grad()
    # without oneDNN, as in pre-training in bfloat16 on a CPU
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", not half)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = objective(built(inputs), inputs, ALL)
        losses["total"].backward()
    assert all(loss.isfinite() for loss in losses.values()), losses
    for name, parameter in built.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_dfa_of_one_sentence_in_closed_form(tiny_model: Model, make_inputs: MakeInputs) -> None:
    """Spec/model 4.6 and invariant 16: with S = 1 there is no mean; the gradient reaches u_img."""
    only = Objective(
        **{f"{term}_weight": 0.0 for term in ("mlm", "sfr", "mim", "cml", "ssm")}, dfa_weight=1.0
    )
    torch.manual_seed(0)
    model = MG3D(tiny_model, only).double()
    inputs = make_inputs([[3], [5]])
    inputs = replace(inputs, volume=inputs.volume.double())
    outputs = model(inputs)

    contextual = model.text_encoder(inputs.input_ids, inputs.attention_mask)
    expected = []
    for row in range(2):
        t = contextual[row][inputs.sentence_index[row] == 0].mean(0)
        q = model.image_pool(model.image_tokens(inputs.volume[row : row + 1]))[0]
        for layer in model.aggregation.layers:
            gate = torch.sigmoid(layer.key(q) @ layer.query(t) / len(t) ** 0.5)
            t = gate * layer.value(t)
            q = torch.tanh(model.aggregation.pool(t))
        expected.append(model.dfa_text_head(q))
    torch.testing.assert_close(outputs.dfa_text, torch.stack(expected), rtol=1e-9, atol=1e-9)
    objective(outputs, inputs, only)["total"].backward()
    assert model.image_pool.linear.weight.grad.abs().max() > 0


def test_sfr_targets_are_the_same_after_training(
    tiny_model: Model, make_inputs: MakeInputs
) -> None:
    """Spec/model invariant 17: they do not move at all, so no number of steps collapses them."""
    words = Objective(
        **{f"{term}_weight": 0.0 for term in ("mim", "cml", "dfa", "ssm")}, sfr_weight=1.0
    )
    torch.manual_seed(0)
    model, inputs = MG3D(tiny_model, words), make_inputs([[3, 4, 2], [5, 2, 3]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    outputs = model(inputs)
    before, first = outputs.sfr_target, objective(outputs, inputs, words)["sfr"]
    for _ in range(10):
        optimizer.zero_grad()
        objective(model(inputs), inputs, words)["total"].backward()
        optimizer.step()
    outputs = model(inputs)
    assert objective(outputs, inputs, words)["sfr"] < first / 2
    assert torch.equal(outputs.sfr_target, before)
    targets = F.normalize(before[outputs.sentence_mask], dim=-1)
    assert targets.var(dim=0).sum() > 0.05, "sentences have targets of their own"


class HostReads(TorchDispatchMode):
    """Files of this package in which a tensor's value is read by Python (``.item()``, ``if x``)."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            *callers, _ = traceback.extract_stack()
            torchs = str(Path(torch.__file__).parent)
            self.files.append(
                [c.filename for c in callers if not c.filename.startswith(torchs)][-1]
            )
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_by_the_host_in_a_forward_pass(
    built: MG3D, make_inputs: MakeInputs
) -> None:
    """Spec/model invariant 29, of our code.

    The text encoder's library reads whether a mask is all ones; gathering, how much a rank brings.
    """
    inputs = make_inputs()
    with HostReads() as reads:
        built(inputs)
        assert float(inputs.volume.sum()) > 0  # seen, so the mode works
    assert reads.files[-1] == __file__
    ours = [f for f in reads.files[:-1] if Path(f).is_relative_to(Path(mg3d.__file__).parent)]
    assert not ours
