"""The erratum, error by error: each test fails if the override that it names is taken away."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mg3d.models.as_published import MG3DAsPublished
from mg3d.models.build import build
from mg3d.models.mg3d import MG3D, Inputs
from mg3d.objectives.mim import mask_blocks
from mg3d.objectives.objective import objective
from mg3d.params import Model, Objective
from mg3d.training.accumulate import in_parts, join, split

TERMS = ("mlm", "sfr", "mim", "cml", "dfa", "ssm", "itc")
MakeInputs = Callable[..., Inputs]


@pytest.fixture(scope="session")
def wide(tiny_model: Model) -> Model:
    """Image tokens as wide as the text, so that they can be projected twice."""
    vision = tiny_model.vision.model_copy(update={"token_projector": True})
    return tiny_model.model_copy(update={"vision": vision})


def _weights(*terms: str, published: bool = True, **changes: Any) -> Objective:
    weights = {f"{term}_weight": float(term in terms) for term in TERMS}
    return Objective(**weights, as_published=published, **changes)


def _build(model: Model, *terms: str, published: bool = True) -> MG3D:
    """In eval mode, in which the two forms of a random model are deterministic."""
    torch.manual_seed(0)
    return build(model, _weights(*terms, published=published)).double().eval()


def _inputs(make_inputs: MakeInputs, *args: Any, **kwargs: Any) -> Inputs:
    inputs = make_inputs(*args, **kwargs)
    return dataclasses.replace(
        inputs, volume=inputs.volume.double(), masked_volume=inputs.masked_volume.double()
    )


def _losses(built: MG3D, inputs: Inputs) -> dict[str, Tensor]:
    return objective(built(inputs), inputs, built.objective)


def _embedding_layer(built: MG3D, ids: Tensor) -> Tensor:
    """[L] -> [L, E], BERT's first layer spelt out."""
    layer = built.text_encoder.transformer.embeddings
    x = layer.word_embeddings.weight[ids] + layer.position_embeddings.weight[: len(ids)]
    x = x + layer.token_type_embeddings.weight[0]
    return F.layer_norm(x, x.shape[-1:], layer.LayerNorm.weight, layer.LayerNorm.bias, 1e-12)


# --- the default ----------------------------------------------------------------------------------


def test_the_default_is_the_corrected_form_and_has_other_parameters_only_where_mim_meets_words(
    wide: Model,
) -> None:
    assert type(build(wide, Objective())) is MG3D
    ours, published = (_build(wide, *TERMS, published=p).state_dict() for p in (False, True))
    assert isinstance(build(wide, _weights(*TERMS)), MG3DAsPublished)
    added = {name for name in published if name not in ours}
    assert not ours.keys() - published.keys()
    sides = ("query", "key", "value")
    assert added == {
        f"mlm_fusion.layers.1.image.{s}.{p}" for s in sides for p in ("weight", "bias")
    }
    alone = _build(wide, "mlm", "mim").state_dict()
    assert not any(name.startswith("mim_fusion.") for name in alone)


# --- one error each -------------------------------------------------------------------------------


def test_pads_enter_the_gates_of_the_words(wide: Model, make_inputs: MakeInputs) -> None:
    """`_heeded` and `forward`: what is predicted depends on how far reports are padded."""
    inputs = _inputs(make_inputs)
    further = _inputs(make_inputs, extra_tokens=9)
    short = wide.model_copy(update={"text": wide.text.model_copy(update={"max_tokens": 40})})
    for published in (False, True):
        to_64, to_40 = (_build(m, "mlm", published=published) for m in (wide, short))
        to_40.load_state_dict(to_64.state_dict())
        logits = to_64(inputs).mlm_logits
        change = (to_40(inputs).mlm_logits - logits).abs().max()
        assert change > 1e-7 if published else change < 1e-9
        # to a fixed length, not to that of the batch
        torch.testing.assert_close(to_64(further).mlm_logits, logits, atol=1e-9, rtol=0)


def test_the_contrast_reads_tokens_that_are_projected_twice(
    wide: Model, make_inputs: MakeInputs
) -> None:
    """`_contrast_tokens`: W (W x + b + e) + b + e; MLM and MIM read W x + b + e."""
    inputs = _inputs(make_inputs)
    for published in (False, True):
        built = _build(wide, *TERMS, published=published)
        seen: dict[str, list[Tensor]] = {"image_pool": [], "mim_fusion": [], "mlm_fusion": []}
        for name, calls in seen.items():
            getattr(built, name).register_forward_hook(
                lambda _, args, __, calls=calls: calls.append(args[0])
            )
        outputs = built(inputs)
        x = built.token_projector(built.vision_encoder.tokens(inputs.volume))
        weight, bias = built.image_projection.weight, built.image_projection.bias
        once = torch.einsum("oi,bni->bno", weight, x) + bias + built.image_type
        twice = torch.einsum("oi,bni->bno", weight, once) + bias + built.image_type
        contrasted = twice if published else once
        torch.testing.assert_close(seen["image_pool"][0], contrasted)
        torch.testing.assert_close(seen["mim_fusion"][-1], contrasted)
        torch.testing.assert_close(seen["mlm_fusion"][0], once)
        image = F.normalize(outputs.itc_image, dim=-1)
        torch.testing.assert_close(built.encode_image(inputs.volume), image)


def test_mim_reads_words_through_the_layers_of_mlm(wide: Model, make_inputs: MakeInputs) -> None:
    """`_guided`: sentences do not matter, and no gradient reaches the text."""
    inputs = _inputs(make_inputs)
    merged = dataclasses.replace(
        inputs,
        sentence_index=inputs.sentence_index.clamp(max=0),
        sentence_mask=inputs.sentence_mask[:, :1],
    )
    reworded = dataclasses.replace(
        inputs, input_ids=torch.where(inputs.sentence_index == 0, 7, inputs.input_ids)
    )
    for published in (False, True):
        built = _build(wide, "mlm", "mim", published=published)
        rebuilt = built(inputs).reconstruction
        assert torch.equal(built(merged).reconstruction, rebuilt) == published
        assert not torch.allclose(built(reworded).reconstruction, rebuilt, atol=1e-6)
        _losses(built, inputs)["mim"].backward()
        layers = built.mlm_fusion if published else built.mim_fusion
        assert all(p.grad.any() for n, p in layers.named_parameters() if n.startswith("layers.0"))
        assert built.text_projection.weight.grad is None
        assert built.text_type.grad is None


def test_mim_layer_by_layer(wide: Model, make_inputs: MakeInputs) -> None:
    """`_guided` against loops over samples and tokens, pads included."""
    built, inputs = _build(wide, "mlm", "mim"), _inputs(make_inputs)
    seen: list[Tensor] = []
    built.mim_head.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    built(inputs)
    missing = wide.text.max_tokens - inputs.input_ids.shape[1]
    ids, attention = (F.pad(x, (0, missing)) for x in (inputs.input_ids, inputs.attention_mask))
    words = built.text_projection(built.text_encoder(ids, attention)) + built.text_type
    images = built.image_tokens(inputs.masked_volume)
    for row in range(len(ids)):
        image, text = images[row], words[row]
        for layer in built.mlm_fusion.layers:
            sides = []
            for side, own, other in ((layer.image, image, text), (layer.text, text, image)):
                gated = []
                for token in own:
                    scores = side.key(other) @ side.query(token) / len(token) ** 0.5
                    gated.append(torch.sigmoid(scores).mean() * side.value(token))
                sides.append(torch.stack(gated))
            image, text = sides
        torch.testing.assert_close(seen[0][row], image, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
def test_mim_divides_by_one_half(fraction: float, wide: Model, make_inputs: MakeInputs) -> None:
    """The loss is fraction / 0.5 times ours, and ours only at 0.5."""
    inputs = _inputs(make_inputs)
    masked, mask = mask_blocks(inputs.volume, fraction, 16, torch.Generator().manual_seed(0))
    inputs = dataclasses.replace(inputs, masked_volume=masked, voxel_mask=mask)
    built = _build(wide, "mlm", "mim")
    outputs = built(inputs)
    ours = objective(outputs, inputs, _weights("mlm", "mim", published=False))["mim"]
    published = objective(outputs, inputs, built.objective)["mim"]
    torch.testing.assert_close(published, ours * fraction / 0.5)
    error = (outputs.reconstruction - inputs.volume)[mask].square().sum() / inputs.volume.numel()
    torch.testing.assert_close(published, error / 0.5)


def test_sfr_targets_are_learnt_from_words_without_context(
    wide: Model, make_inputs: MakeInputs
) -> None:
    """`_sfr_targets`: the embedding layer's mean of the report's own tokens, through the head."""
    built, inputs = _build(wide, "mlm", "sfr"), _inputs(make_inputs)
    outputs = built(inputs)
    for row, number in inputs.sentence_mask.nonzero().tolist():
        own = inputs.sentence_index[row] == number
        mean = _embedding_layer(built, inputs.input_ids[row])[own].mean(0)
        target = outputs.sfr_target[row, number]
        torch.testing.assert_close(target, built.sfr_target_head(mean), rtol=1e-6, atol=1e-6)
    _losses(built, inputs)["sfr"].backward()
    assert all(p.grad is not None and p.grad.any() for p in built.sfr_target_head.parameters())
    assert all(p.grad is None for p in built.text_encoder.transformer.parameters())
    ours = _build(wide, "mlm", "sfr", published=False)
    assert not any(p.requires_grad for p in ours.sfr_target_head.parameters())


def test_learnt_sfr_targets_collapse(wide: Model, make_inputs: MakeInputs) -> None:
    """Trained by SFR alone the published targets become one direction; ours stay as they were.

    Their mean cosine goes from 0.61 to over 0.99 in 40 steps.
    """
    inputs = make_inputs([[3, 4, 2], [5, 2, 3]])

    def alike(built: MG3D) -> float:
        target = built(inputs).sfr_target.detach()[inputs.sentence_mask]
        target = F.normalize(target, dim=-1)
        return float((target @ target.T).mean())

    cosines = {}
    for published in (False, True):
        built = _build(wide, "mlm", "sfr", published=published).float()
        optimizer = torch.optim.Adam([p for p in built.parameters() if p.requires_grad], 1e-2)
        before = alike(built)
        for _ in range(40):
            optimizer.zero_grad()
            _losses(built, inputs)["sfr"].backward()
            optimizer.step()
        cosines[published] = before, alike(built)
    assert cosines[False][0] == cosines[False][1]
    assert cosines[True][0] < 0.95
    assert cosines[True][1] > 0.99


def test_ssm_targets_are_clauses_on_their_own(wide: Model, make_inputs: MakeInputs) -> None:
    """`_ssm_targets` against a loop: the embedding layer's mean over [CLS] clause [SEP]."""
    inputs = _inputs(make_inputs, [[3, 4], [5, 2, 3], [1], []], extra_tokens=3, extra_sentences=1)
    order = torch.tensor([2, 0, 1, 3])  # sentences need not be numbered in the order of the text
    index = inputs.sentence_index
    inputs = dataclasses.replace(
        inputs,
        sentence_index=torch.where(index >= 0, order[index.clamp(min=0)], index),
        sentence_mask=torch.ones_like(inputs.sentence_mask),
    )
    built = _build(wide, "cml", "ssm")
    outputs = built(inputs)
    assert outputs.sentence_mask.sum() == 6
    for row, number in outputs.sentence_mask.nonzero().tolist():
        words = inputs.input_ids[row][inputs.sentence_index[row] == number]
        clause = torch.tensor([2, *words.tolist(), 3])
        expected = _embedding_layer(built, clause).mean(0)
        torch.testing.assert_close(outputs.ssm_text[row, number], expected, rtol=1e-6, atol=1e-6)
    assert not outputs.ssm_text[~outputs.sentence_mask].any()
    assert not outputs.ssm_text.requires_grad


def test_dropout_in_the_frozen_text_encoder(wide: Model, make_inputs: MakeInputs) -> None:
    """`__init__`: two passes of training differ; those of evaluation, and all of ours, do not."""
    inputs = _inputs(make_inputs)
    fields = ("mlm_logits", "sfr_target", "reconstruction", "cml_fused", "ssm_text")
    for published in (False, True):
        torch.manual_seed(0)
        built = build(wide, _weights(*TERMS, published=published)).double()  # as it is constructed
        transformer = built.text_encoder.transformer
        before = {name: w.clone() for name, w in transformer.state_dict().items()}
        digest = built.text_encoder.digest.clone()
        for training in (True, False, True):
            built.train(training)
            noisy = published and training
            assert transformer.training == noisy
            one, other = built(inputs), built(inputs)
            for field in fields:
                equal = torch.equal(getattr(one, field), getattr(other, field))
                assert equal != noisy, (field, published, training)
        optimizer = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], lr=1.0)
        _losses(built, inputs)["total"].backward()
        optimizer.step()
        assert not any(p.requires_grad or p.grad is not None for p in transformer.parameters())
        assert all(torch.equal(w, before[n]) for n, w in transformer.state_dict().items())
        assert torch.equal(built.text_encoder.digest, digest)


def test_no_text_that_was_encoded_beforehand_is_read(wide: Model, make_inputs: MakeInputs) -> None:
    """Every pass encodes the words as they are: masked, whole for MIM, whole for the contrast."""
    built, inputs, ids = _build(wide, *TERMS), _inputs(make_inputs), []
    built.text_encoder.register_forward_pre_hook(lambda _, args: ids.append(args[0]))
    built(inputs)
    width = inputs.input_ids.shape[1]
    read = sorted(x[:, :width].tolist() for x in ids)
    whole = inputs.input_ids.tolist()
    assert read == sorted([whole, whole, inputs.masked_ids.tolist()])
    assert all(x.shape[1] == wide.text.max_tokens for x in ids)


# --- all of them together -------------------------------------------------------------------------

#: As spec/model 4.8, but MIM trains the layers of MLM. Columns: vision encoder; W_v, e₁; W_l, e₀;
#: MLM layers; MIM layers; aggregation.
GRADIENT_MAP = {
    "mlm": (True, True, True, True, False, False),
    "sfr": (True, True, True, True, False, False),
    "mim": (True, True, False, True, False, False),
    "cml": (True, True, False, False, True, False),
    "dfa": (True, True, False, False, True, True),
    "ssm": (True, True, False, False, False, True),
    "itc": (True, True, False, False, False, False),
}
COLUMNS = ("vision_encoder.", "image_", "text_", "mlm_fusion.", "mim_fusion.", "aggregation.")


def test_gradient_map(wide: Model, make_inputs: MakeInputs) -> None:
    built, inputs = _build(wide, *TERMS).train(), _inputs(make_inputs)
    parameters = [
        (n, p) for n, p in built.named_parameters() if not n.startswith(("image_pool", "text_pool"))
    ]
    for term, expected in GRADIENT_MAP.items():
        built.zero_grad(set_to_none=True)
        _losses(built, inputs)[term].backward()
        reached = [name for name, p in parameters if p.grad is not None and p.grad.any()]
        found = tuple(any(name.startswith(column) for name in reached) for column in COLUMNS)
        assert found == expected, term


@pytest.mark.parametrize("training", [False, True])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(
    training: bool, wide: Model, make_inputs: MakeInputs
) -> None:
    """Also under dropout: a part that runs again on the way back draws what it drew before."""
    built, inputs = _build(wide, *TERMS).train(training), _inputs(make_inputs)

    def gradients(run: Callable[[], Any]) -> list[Tensor]:
        torch.manual_seed(3)
        built.zero_grad()
        objective(run(), inputs, built.objective)["total"].backward()
        return [p.grad.clone() for p in built.parameters() if p.requires_grad]

    found = gradients(lambda: in_parts(built, inputs, 2))
    expected = gradients(
        (lambda: join([built(part) for part in split(inputs, 2)]))
        if training
        else (lambda: built(inputs))
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_odd_reports_and_half_precision_are_finite(wide: Model, make_inputs: MakeInputs) -> None:
    torch.manual_seed(0)
    built = build(wide, _weights(*TERMS))
    for lengths in ([[1], [], [4, 1]], [[], []], [[5]]):
        for half in (False, True):
            built.zero_grad()
            inputs = make_inputs(lengths)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                losses = _losses(built, inputs)
            assert all(loss.isfinite() for loss in losses.values()), (lengths, half)
            if not half:
                losses["total"].backward()
                trained = [p for p in built.parameters() if p.requires_grad]
                assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_both_forms_train(wide: Model, make_inputs: MakeInputs) -> None:
    """Six steps lower the total loss of either."""
    inputs = make_inputs([[3, 4], [5, 2, 3], [4], [2, 2, 2, 2]])
    falls = {}
    for published in (False, True):
        built = _build(wide, *TERMS, published=published).float().train()
        optimizer = torch.optim.Adam([p for p in built.parameters() if p.requires_grad], 3e-3)
        history = []
        for _ in range(6):
            losses = _losses(built, inputs)
            optimizer.zero_grad()
            losses["total"].backward()
            optimizer.step()
            history.append(losses["total"].item())
        falls[published] = history[-1] / history[0]
    assert max(falls.values()) < 0.9, falls


# --- what it cannot do ----------------------------------------------------------------------------


def test_what_cannot_work_is_refused(tiny_model: Model) -> None:
    with pytest.raises(ValueError, match=r"layers of MLM.*give mlm_weight a value"):
        Objective(mlm_weight=0, sfr_weight=0, as_published=True)
    with pytest.raises(ValueError, match="ssm_target contextual would not be read"):
        Objective(ssm_target="contextual", as_published=True)
    with pytest.raises(ValueError, match=r"64 channels and the text has 32.*token_projector"):
        build(tiny_model, _weights("cml"))
    build(tiny_model, _weights("mlm", "mim"))  # projects nothing twice
