import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from mg3d.models.build import build
from mg3d.models.mg3d import MG3D, Inputs, Outputs
from mg3d.models.vision import SwinEncoder
from mg3d.objectives.objective import objective
from mg3d.params import Model, Objective

TERMS = ("mlm", "sfr", "mim", "cml", "dfa", "ssm", "itc")
MakeInputs = Callable[..., Inputs]

#: Parameters whose gradient is zero by mathematics: softmax is blind to a shift by the key's bias,
#: instance norm to the bias of the convolution before it.
CANCELLED = ("pool.key.bias", *(f"mim_head.blocks.{i}.0.bias" for i in range(5)))


def _weights(*terms: str) -> Objective:
    """Weight 1 for the given terms, 0 for all others; sentences of random BERTs all count."""
    weights = {f"{term}_weight": float(term in terms) for term in TERMS}
    return Objective(**weights, ssm_similar_from=0.3, ssm_dissimilar_to=0.2)


def _build(model: Model, *terms: str, double: bool = False) -> MG3D:
    torch.manual_seed(0)
    built = MG3D(model, _weights(*terms))
    return built.double() if double else built


def _double(inputs: Inputs) -> Inputs:
    return dataclasses.replace(
        inputs, volume=inputs.volume.double(), masked_volume=inputs.masked_volume.double()
    )


def _rows(inputs: Inputs, rows: list[int]) -> Inputs:
    given = {name: tensor for name, tensor in vars(inputs).items() if tensor is not None}
    return Inputs(**{name: tensor[rows] for name, tensor in given.items()})


def _losses(built: MG3D, inputs: Inputs) -> dict[str, torch.Tensor]:
    return objective(built(inputs), inputs, built.objective)


SUBSETS = [
    *((term,) for term in TERMS if term not in ("sfr", "ssm")),
    ("mlm", "sfr"),
    ("mlm", "mim"),
    ("mim", "ssm"),
    ("cml", "ssm"),
    ("dfa", "ssm"),
    ("mim", "itc"),
    ("mlm", "sfr", "mim", "cml", "dfa", "ssm"),
    TERMS,
]


@pytest.mark.parametrize("num_fusion_layers", [1, 2])
@pytest.mark.parametrize(
    ("terms", "as_published"),
    [
        *((terms, False) for terms in SUBSETS),
        *((terms, True) for terms in SUBSETS if "mim" not in terms or "mlm" in terms),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else f"published={value}",
)
def test_any_subset_of_terms_runs_and_trains_every_parameter_that_it_builds(
    tiny_model: Model,
    make_inputs: MakeInputs,
    terms: tuple[str, ...],
    as_published: bool,
    num_fusion_layers: int,
) -> None:
    vision = tiny_model.vision.model_copy(update={"token_projector": as_published})
    model = tiny_model.model_copy(update={"num_fusion_layers": num_fusion_layers, "vision": vision})
    torch.manual_seed(0)
    built = build(model, _weights(*terms).model_copy(update={"as_published": as_published}))
    inputs = make_inputs()
    losses = _losses(built, inputs)
    assert set(losses) == {*terms, "total"}
    losses["total"].backward()
    for name, parameter in built.named_parameters():
        if not parameter.requires_grad:
            assert name.startswith("sfr_target_head.")
            assert not as_published
            continue
        assert parameter.grad is not None, f"{name} is dead"
        if not name.endswith(CANCELLED):
            assert parameter.grad.abs().max() > 0, f"{name} has a zero gradient"


VARIANTS: list[dict[str, str]] = [
    {"fusion_pool": "attention"},
    {"fusion_pool": "linear"},
    {"fusion": "gated_residual"},
    {"fusion": "cross_attention"},
]


def _with_fusion(model: Model, variant: dict[str, str], inputs: Inputs) -> Model:
    tokens = math.prod(size // 32 for size in inputs.volume.shape[2:])
    number = {"num_image_tokens": tokens if variant.get("fusion_pool") == "linear" else None}
    return model.model_copy(update=variant | number)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_kind_of_fusion_trains_every_parameter(
    tiny_model: Model, make_inputs: MakeInputs, variant: dict[str, str]
) -> None:
    inputs = make_inputs()
    built = _build(_with_fusion(tiny_model, variant, inputs), *TERMS)
    _losses(built, inputs)["total"].backward()
    for name, parameter in built.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, f"{name} is dead"


#: spec/model 4.8. Columns: vision encoder; W_v, e₁; W_l, e₀; MLM layers; MIM layers; aggregation.
GRADIENT_MAP = {
    "mlm": (True, True, True, True, False, False),
    "sfr": (True, True, True, True, False, False),
    "mim": (True, True, False, False, True, False),
    "cml": (True, True, False, False, True, False),
    "dfa": (True, True, False, False, True, True),
    "ssm": (True, True, False, False, False, True),
    "itc": (True, True, False, False, False, False),
}
COLUMNS = (
    ("vision_encoder.",),
    ("image_projection.", "image_type"),
    ("text_projection.", "text_type"),
    ("mlm_fusion.",),
    ("mim_fusion.",),
    ("aggregation.",),
)


def _with_encoder(model: Model, name: str) -> Model:
    """The 3D U-Net half as wide: it works at full resolution."""
    width = 2 if name == "unet3d" else model.vision.embed_dim
    vision = model.vision.model_copy(update={"name": name, "embed_dim": width})
    return model.model_copy(update={"vision": vision})


@pytest.mark.parametrize("encoder", ["swin", "unet3d", "dynunet"])
@pytest.mark.parametrize("term", TERMS)
def test_gradient_map(tiny_model: Model, make_inputs: MakeInputs, term: str, encoder: str) -> None:
    built, inputs = _build(_with_encoder(tiny_model, encoder), *TERMS), make_inputs()
    _losses(built, inputs)[term].backward()
    reached = {
        name
        for name, p in built.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    expected = GRADIENT_MAP[term]
    found = tuple(any(name.startswith(column) for name in reached) for column in COLUMNS)
    assert found == expected
    assert all(p.grad is None for p in built.text_encoder.transformer.parameters())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_kind_of_fusion_has_the_gradient_map_and_ignores_padding(
    tiny_model: Model, make_inputs: MakeInputs, variant: dict[str, str]
) -> None:
    plain = _double(make_inputs())
    padded = _double(make_inputs(extra_tokens=9, extra_sentences=4))
    built = _build(_with_fusion(tiny_model, variant, plain), *TERMS, double=True)
    for term, expected in GRADIENT_MAP.items():
        built.zero_grad(set_to_none=True)
        _losses(built, plain)[term].backward()
        reached = [n for n, p in built.named_parameters() if p.grad is not None and p.grad.any()]
        found = tuple(any(name.startswith(column) for name in reached) for column in COLUMNS)
        assert found == expected, term
    _assert_same(built(plain), built(padded), plain.sentence_mask, 1e-9)


@pytest.mark.parametrize("encoder", ["unet3d", "dynunet"])
def test_convolutional_encoders_train_every_parameter_and_keep_samples_apart(
    tiny_model: Model, make_inputs: MakeInputs, encoder: str
) -> None:
    built = _build(_with_encoder(tiny_model, encoder), *TERMS, double=True)
    inputs = _double(make_inputs())
    _losses(built, inputs)["total"].backward()
    for name, parameter in built.named_parameters():
        if parameter.requires_grad and not name.endswith(CANCELLED):
            assert parameter.grad is not None, f"{name} is dead"
            assert parameter.grad.abs().max() > 0, f"{name} has a zero gradient"
    together, alone = built(inputs), built(_rows(inputs, [1]))
    for field in ("reconstruction", "cml_fused", "ssm_visual", "itc_image"):
        torch.testing.assert_close(
            getattr(alone, field), getattr(together, field)[1:2], atol=1e-9, rtol=0, msg=field
        )


@pytest.mark.parametrize("shape", [(64, 32, 32), (32, 64, 96)])
def test_shapes(tiny_model: Model, make_inputs: MakeInputs, shape: tuple[int, int, int]) -> None:
    inputs = make_inputs(shape=shape)
    outputs = _build(tiny_model, *TERMS)(inputs)
    num_masked = int((inputs.mlm_labels != -100).sum())
    expected = {
        "sentence_mask": (3, 3),
        "mlm_logits": (num_masked, 32),
        "sfr_prediction": (3, 3, 8),
        "sfr_target": (3, 3, 8),
        "reconstruction": (3, 1, *shape),
        "cml_fused_globals": (3, 64),
        "cml_unimodal_globals": (3, 64),
        "ssm_visual": (3, 3, 128),
        "ssm_text": (3, 3, 32),
    }
    for field in dataclasses.fields(Outputs):
        assert getattr(outputs, field.name).shape == expected.get(field.name, (3, 32)), field.name


def test_a_term_without_weight_costs_nothing(tiny_model: Model, make_inputs: MakeInputs) -> None:
    """At most two image passes and two text passes; fewer where fewer terms read them."""
    inputs = make_inputs()
    for terms, expected in (
        (TERMS, (2, 2)),
        (("mlm",), (1, 1)),
        (("mim",), (1, 1)),
        (("itc", "cml", "dfa", "ssm"), (1, 1)),
        (("mlm", "mim"), (2, 2)),
    ):
        built, calls = _build(tiny_model, *terms), []
        built.vision_encoder.register_forward_hook(lambda *_, calls=calls: calls.append("image"))
        built.text_encoder.register_forward_hook(lambda *_, calls=calls: calls.append("text"))
        outputs = built(inputs)
        assert (calls.count("image"), calls.count("text")) == expected
        if terms == ("mim",):
            present = {
                f.name for f in dataclasses.fields(outputs) if getattr(outputs, f.name) is not None
            }
            assert present == {"sentence_mask", "reconstruction"}


def _assert_same(one: Outputs, other: Outputs, sentences: torch.Tensor, tolerance: float) -> None:
    """Equal wherever a sentence is valid ([B, S] mask of ``one``)."""
    num_sentences = sentences.shape[1]
    for field in dataclasses.fields(Outputs):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in (
            "sentence_mask",
            "sfr_prediction",
            "sfr_target",
            "ssm_visual",
            "ssm_text",
        ):
            a, b = a[sentences], b[:, :num_sentences][sentences]
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0, msg=field.name)


def test_padding_changes_nothing(tiny_model: Model, make_inputs: MakeInputs) -> None:
    built = _build(tiny_model, *TERMS, double=True)
    plain = _double(make_inputs())
    padded = _double(make_inputs(extra_tokens=9, extra_sentences=4))
    assert padded.input_ids.shape[1] == plain.input_ids.shape[1] + 9
    _assert_same(built(plain), built(padded), plain.sentence_mask, 1e-9)
    for (term, a), b in zip(
        _losses(built, plain).items(), _losses(built, padded).values(), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0, msg=term)


def test_samples_are_independent_and_patients_may_be_permuted(
    tiny_model: Model, make_inputs: MakeInputs
) -> None:
    built, inputs = _build(tiny_model, *TERMS, double=True), _double(make_inputs())
    together = built(inputs)
    num_masked = [int((row != -100).sum()) for row in inputs.mlm_labels]
    logits = together.mlm_logits.split(num_masked)
    for rows in ([0], [1], [2], [2, 0, 1]):
        alone = built(_rows(inputs, rows))
        for field in dataclasses.fields(Outputs):
            whole = getattr(together, field.name)
            expected = (
                torch.cat([logits[r] for r in rows]) if field.name == "mlm_logits" else whole[rows]
            )
            torch.testing.assert_close(
                getattr(alone, field.name), expected, atol=1e-9, rtol=0, msg=field.name
            )
    before, after = _losses(built, inputs), _losses(built, _rows(inputs, [2, 0, 1]))
    for term, value in before.items():
        torch.testing.assert_close(after[term], value, atol=1e-9, rtol=0, msg=term)


def test_sentences_may_be_renumbered(tiny_model: Model, make_inputs: MakeInputs) -> None:
    """The order of sentences, as numbered, matters to no loss but permutes their features."""
    built, inputs = (
        _build(tiny_model, *TERMS, double=True),
        _double(make_inputs([[3, 2, 4], [2, 5, 3]])),
    )
    order = torch.tensor([2, 0, 1])
    index = inputs.sentence_index
    renumbered = dataclasses.replace(
        inputs, sentence_index=torch.where(index >= 0, order[index.clamp(min=0)], index)
    )
    before, after = built(inputs), built(renumbered)
    for name in ("sfr_prediction", "sfr_target", "ssm_visual", "ssm_text"):
        torch.testing.assert_close(
            getattr(after, name)[:, order], getattr(before, name), atol=1e-9, rtol=0, msg=name
        )
    for term, value in _losses(built, inputs).items():
        torch.testing.assert_close(
            _losses(built, renumbered)[term], value, atol=1e-9, rtol=0, msg=term
        )


def test_reports_guide_the_reconstruction(tiny_model: Model, make_inputs: MakeInputs) -> None:
    built, inputs = _build(tiny_model, "mim", double=True), _double(make_inputs())
    other = dataclasses.replace(inputs, input_ids=inputs.input_ids.roll(1, 0))
    assert not torch.allclose(built(inputs).reconstruction, built(other).reconstruction, atol=1e-6)
    hidden = torch.where(inputs.voxel_mask, torch.rand_like(inputs.volume), inputs.volume)
    peeking = dataclasses.replace(inputs, volume=hidden)  # hidden voxels never enter
    assert torch.equal(built(inputs).reconstruction, built(peeking).reconstruction)


@pytest.mark.parametrize("ssm_target", ["static", "contextual"])
def test_targets_are_frozen_features_of_the_whole_sentences(
    tiny_model: Model, make_inputs: MakeInputs, ssm_target: str
) -> None:
    """SFR: contextual means through the frozen head; SSM: word embeddings, or the same means."""
    torch.manual_seed(0)
    built = MG3D(tiny_model, _weights(*TERMS).model_copy(update={"ssm_target": ssm_target}))
    inputs = make_inputs()
    outputs = built(inputs)
    transformer = built.text_encoder.transformer
    with torch.no_grad():
        contextual = transformer(inputs.input_ids, inputs.attention_mask).last_hidden_state
        static = transformer.embeddings.word_embeddings(inputs.input_ids)
    compared = {"static": static, "contextual": contextual}[ssm_target]
    for row, number in inputs.sentence_mask.nonzero().tolist():
        own = inputs.sentence_index[row] == number
        target = built.sfr_target_head(contextual[row, own].mean(0))
        torch.testing.assert_close(outputs.sfr_target[row, number], target)
        torch.testing.assert_close(outputs.ssm_text[row, number], compared[row, own].mean(0))
    assert not outputs.sfr_target.requires_grad
    assert not outputs.ssm_text.requires_grad


def test_words_are_predicted_from_the_corrupted_report_and_the_whole_volume(
    tiny_model: Model, make_inputs: MakeInputs
) -> None:
    built, inputs = _build(tiny_model, "mlm", double=True), _double(make_inputs())
    logits = built(inputs).mlm_logits
    original = torch.where(inputs.mlm_labels >= 0, 4, inputs.input_ids)
    unseen = dataclasses.replace(inputs, input_ids=original, masked_volume=inputs.volume * 0)
    assert torch.equal(built(unseen).mlm_logits, logits)
    for seen in ({"volume": inputs.volume.flip(0)}, {"masked_ids": original}):
        assert not torch.allclose(built(dataclasses.replace(inputs, **seen)).mlm_logits, logits)


def test_odd_reports_give_finite_losses_and_gradients(
    tiny_model: Model, make_inputs: MakeInputs
) -> None:
    """One sentence, one word, no sentence at all, every word masked, zero volumes, one sample."""
    built = _build(tiny_model, *TERMS)
    batches = [make_inputs([[1], [], [4, 1]]), make_inputs([[], []]), make_inputs([[5]])]
    inputs = make_inputs()
    batches += [
        dataclasses.replace(
            inputs,
            masked_ids=torch.where(inputs.sentence_index >= 0, 4, inputs.input_ids),
            mlm_labels=torch.where(inputs.sentence_index >= 0, inputs.input_ids, -100),
        ),
        dataclasses.replace(inputs, volume=inputs.volume * 0, masked_volume=inputs.volume * 0),
    ]
    for batch in batches:
        built.zero_grad()
        losses = _losses(built, batch)
        losses["total"].backward()
        assert all(loss.isfinite() for loss in losses.values())
        trained = [p for p in built.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_dual_encoder_needs_one_modality_and_agrees_with_the_joint_pass(
    tiny_model: Model, make_inputs: MakeInputs
) -> None:
    built, inputs = _build(tiny_model, *TERMS).eval(), make_inputs()
    image = built.encode_image(inputs.volume)
    text = built.encode_text(
        inputs.input_ids, inputs.attention_mask, inputs.sentence_index, inputs.sentence_mask
    )
    outputs = built(inputs)
    torch.testing.assert_close(image, F.normalize(outputs.itc_image, dim=-1))
    torch.testing.assert_close(text, F.normalize(outputs.itc_text, dim=-1))
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(3))
    without = _build(tiny_model, "mim")
    with pytest.raises(ValueError, match="itc_weight 0; pre-train with itc_weight > 0"):
        without.encode_image(inputs.volume)
    with pytest.raises(ValueError, match="itc_weight"):
        without.encode_text(
            inputs.input_ids, inputs.attention_mask, inputs.sentence_index, inputs.sentence_mask
        )


def test_a_pair_matches_as_in_the_joint_pass(tiny_model: Model, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(extra_sentences=1)
    built = _build(tiny_model, "cml", "dfa", "itc").eval()
    outputs = built(inputs)
    image, sentences, mask = built.encode_pair(
        inputs.volume, inputs.input_ids, inputs.attention_mask, inputs.sentence_index,
        inputs.sentence_mask,
    )  # fmt: skip
    assert outputs.dfa_image is not None
    assert outputs.dfa_text is not None
    both = F.cosine_similarity(outputs.dfa_image, outputs.dfa_text, dim=-1)
    torch.testing.assert_close(built.match(image, sentences, mask), both)
    # The second report with the first volume, alone and without its padding.
    mixed = built.match(image[:1], sentences[1:2, mask[1]], mask[1:2, mask[1]])
    torch.testing.assert_close(
        mixed, built.match(image[[0, 0]], sentences[:2], mask[:2])[1:], rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(mixed, both[1])
    assert built.sentence_weights(image, sentences, mask).shape == (3, 4, image.shape[1])
    assert built.fuses_sentences
    torch.testing.assert_close(built.embed_image(image), built.encode_image(inputs.volume))


def test_what_cannot_match_says_so(tiny_model: Model) -> None:
    built = _build(tiny_model, "itc")
    assert not built.matches
    assert not built.fuses_sentences
    with pytest.raises(ValueError, match="dfa_weight 0; pre-train with dfa_weight > 0"):
        built.match(torch.zeros(1, 4, 8), torch.zeros(1, 2, 8), torch.ones(1, 2).bool())


def test_checkpoints_hold_the_encoder_under_its_name_and_no_text_encoder(
    tiny_model: Model, make_inputs: MakeInputs
) -> None:
    built, inputs = _build(tiny_model, *TERMS), make_inputs()
    state = built.state_dict()
    encoder = SwinEncoder(tiny_model.vision)
    prefix = "vision_encoder."
    encoder.load_state_dict(
        {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    )
    assert [name for name in state if name.startswith("text_encoder.")] == ["text_encoder.digest"]
    torch.manual_seed(1)
    again = MG3D(tiny_model, built.objective)
    again.load_state_dict(state)
    assert torch.equal(again(inputs).reconstruction, built(inputs).reconstruction)


def test_swin_l_projects_its_tokens(tiny_model: Model, make_inputs: MakeInputs) -> None:
    vision = tiny_model.vision.model_copy(update={"token_projector": True})
    built = _build(tiny_model.model_copy(update={"vision": vision}), "itc", double=True)
    inputs = _double(make_inputs())
    assert built.image_tokens(inputs.volume).shape == (3, 2, 32)
    assert not any(name.startswith("vision_encoder.proj") for name in built.state_dict())
    torch.testing.assert_close(  # LN₀ and no batch norm: independent samples
        built.encode_image(inputs.volume)[1:2], built.encode_image(inputs.volume[1:2])
    )


def test_heads_are_what_lies_behind_the_shared_features(tiny_model: Model) -> None:
    built = _build(tiny_model, *TERMS)
    names = {name for name, module in built.named_children() if module in built.heads}
    assert names == {
        *("mlm_head", "sfr_head", "sfr_target_head", "mim_head", "cml_fused_head"),
        *("cml_unimodal_head", "dfa_image_head", "dfa_text_head", "ssm_head"),
        *("itc_image_head", "itc_text_head"),
    }


def test_half_precision_autocast_stays_finite(tiny_model: Model, make_inputs: MakeInputs) -> None:
    built, inputs = _build(tiny_model, *TERMS), make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = _losses(built, inputs)
    losses["total"].backward()
    assert all(loss.isfinite() for loss in losses.values())
    exact = _losses(built, inputs)
    for term in TERMS:
        assert abs(losses[term] - exact[term]) < 0.1 * exact[term] + 0.1, term


@pytest.mark.parametrize("encoder", ["swin", "unet3d", "dynunet"])
def test_four_pairs_can_be_learned_by_heart(
    tiny_model: Model, make_inputs: MakeInputs, encoder: str
) -> None:
    lengths = [[3, 4], [5, 2, 3], [4], [2, 2, 2, 2]]
    inputs = make_inputs(lengths)
    smooth = F.interpolate(
        F.interpolate(inputs.volume, scale_factor=1 / 16), scale_factor=16, mode="nearest"
    )
    inputs = dataclasses.replace(
        inputs, volume=smooth, masked_volume=smooth.masked_fill(inputs.voxel_mask, 0)
    )
    built = _build(_with_encoder(tiny_model, encoder), *TERMS)
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    first: dict[str, float] = {}
    for _ in range(50):
        losses = _losses(built, inputs)
        first = first or {term: loss.item() for term, loss in losses.items()}
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    last = {term: loss.item() for term, loss in losses.items()}
    for term in ("mlm", "mim", "cml", "dfa", "itc"):
        assert last[term] < 0.5 * first[term], (term, first[term], last[term])
    for term in ("sfr", "ssm"):
        assert last[term] < first[term], (term, first[term], last[term])
    outputs = built(inputs)
    pairs = (("cml_fused", "cml_unimodal"), ("dfa_image", "dfa_text"), ("itc_image", "itc_text"))
    for left, right in pairs:
        a = F.normalize(getattr(outputs, left), dim=-1)
        b = F.normalize(getattr(outputs, right), dim=-1)
        assert (a @ b.T).argmax(dim=1).tolist() == [0, 1, 2, 3], left
