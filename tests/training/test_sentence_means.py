"""Sentence means read from disk: the text tower runs for masked words only, and nothing changes."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_prepared import CONTRACT, OBJECTIVE, PRETRAIN, tiny_model, write_prepared

from mg3d.data import pairs as data
from mg3d.data.embeddings import SentenceMeans
from mg3d.models.mg3d import MG3D, Inputs
from mg3d.models.text import FrozenTextEncoder, load_tokenizer, sentence_means
from mg3d.params import Model, Objective
from mg3d.training.feed import Feed
from mg3d.training.pretrain import PretrainStep, pretrain
from mg3d.training.record import read_metrics

WITHOUT_MLM = OBJECTIVE.model_copy(update={"mlm_weight": 0.0, "sfr_weight": 0.0})
PASSES = {"mlm": (OBJECTIVE, 1), "no mlm": (WITHOUT_MLM, 0)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("text") / "encoder")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shape of the ids of each pass of the text encoder's transformer."""
    seen: list[torch.Size] = []
    original = FrozenTextEncoder.forward

    def forward(self: Any, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(input_ids.shape)
        return original(self, input_ids, mask)

    monkeypatch.setattr(FrozenTextEncoder, "forward", forward)
    return seen


def _network(model: Model, objective: Objective = OBJECTIVE) -> MG3D:
    torch.manual_seed(0)
    return MG3D(model, objective)


def _inputs(prepared: Path, network: MG3D, model: Model, objective: Objective) -> Inputs:
    tokenizer = load_tokenizer(model.text.name_or_folder)
    means = SentenceMeans(prepared, network.text_encoder, tokenizer, model.text.max_tokens)
    feed = Feed(
        data.Collate(tokenizer, model.text.max_tokens),
        objective,
        PRETRAIN,
        tokenizer.mask_token_id,
        network.text_encoder.vocab_size,
        torch.device("cpu"),
    )
    return next(feed.training(data.Pairs(prepared, "train", CONTRACT, means)))[1]  # type: ignore


def _step(network: MG3D, inputs: Inputs, parts: int = 1) -> dict[str, torch.Tensor]:
    """Losses, and the gradient of each parameter."""
    network.zero_grad()
    losses = PretrainStep(network, accumulate_steps=parts)(inputs)
    losses["total"].backward()
    gradients = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
    return {f"loss/{k}": loss.detach() for k, loss in losses.items()} | gradients


@pytest.mark.parametrize("case", PASSES)
def test_a_step_runs_the_text_encoder_for_masked_words_only(
    case: str, prepared: Path, model: Model, passes: list[torch.Size]
) -> None:
    objective, num_passes = PASSES[case]
    network = _network(model, objective)
    inputs = _inputs(prepared, network, model, objective)
    assert inputs.sentence_means is not None
    _step(network, inputs)
    assert passes == [inputs.masked_ids.shape] * num_passes
    _step(network, dataclasses.replace(inputs, sentence_means=None))
    assert len(passes) == 2 * num_passes + 1


def test_losses_and_gradients_are_those_of_the_online_pass(prepared: Path, model: Model) -> None:
    network = _network(model)
    inputs = _inputs(prepared, network, model, OBJECTIVE)
    assert inputs.sentence_means is not None
    cached, whole = _step(network, inputs), dataclasses.replace(inputs, sentence_means=None)
    online, again = _step(network, whole), _step(network, inputs, parts=2)
    assert cached.keys() == online.keys() == again.keys()
    for key, expected in online.items():
        # Of the largest gradient, by the CPU's instructions: AVX-512 3e-5, in parts 5e-5; AVX2
        # 4e-5, in parts 6e-5.
        tolerance = 1e-4 * max(float(expected.abs().max()), 1e-3)
        torch.testing.assert_close(cached[key], expected, rtol=0, atol=tolerance, msg=key)
        torch.testing.assert_close(again[key], expected, rtol=0, atol=tolerance, msg=key)

    contextual = network.text_encoder(inputs.input_ids, inputs.attention_mask)
    means, mask = sentence_means(contextual, inputs.sentence_index, inputs.sentence_mask)
    assert torch.equal(mask, inputs.sentence_mask)
    torch.testing.assert_close(inputs.sentence_means, means, rtol=0, atol=2e-6)
    same = _step(network, dataclasses.replace(inputs, sentence_means=means))
    assert all(torch.equal(same[key], online[key]) for key in online)  # of the same means, all bits
    wrong = _step(network, dataclasses.replace(inputs, sentence_means=means.flip(0)))
    assert not torch.allclose(wrong["loss/cml"], online["loss/cml"], rtol=1e-4)


def test_pretraining_is_the_same_with_a_text_encoder_online(
    prepared: Path,
    model: Model,
    tmp_path: Path,
    passes: list[torch.Size],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = PRETRAIN.model_copy(
        update={"num_steps": 3, "validate_every_steps": 3, "checkpoint_every_steps": 3}
    )
    lines, num_passes = [], []
    for name in ("cached", "online"):
        out = tmp_path / name
        pretrain(prepared, out, CONTRACT, model, OBJECTIVE, params, lambda *_: None)
        num_passes.append(len(passes))
        passes.clear()
        found = read_metrics(out / "metrics.jsonl")
        lines.append([{k: v for k, v in line.items() if "_per_s" not in k} for line in found])
        monkeypatch.setattr(data, "_pad_means", lambda *_: None)
    assert num_passes[1] == 2 * num_passes[0] > 0
    assert [line["step"] for line in lines[0]] == [1, 2, 3, 3]
    for cached, online in zip(*lines, strict=True):
        assert cached == pytest.approx(online, rel=1e-4, abs=1e-6)  # measured: 3e-5 with AVX2


def test_means_of_another_text_encoder_are_refused_before_training(
    prepared: Path, model: Model, tmp_path: Path
) -> None:
    text = model.text.model_copy(update={"max_tokens": 32})
    changed = model.model_copy(update={"text": text})
    with pytest.raises(ValueError, match=r"made with max_tokens 64, not 32: run `dvc repro`"):
        pretrain(prepared, tmp_path, CONTRACT, changed, OBJECTIVE, PRETRAIN, lambda *_: None)
    assert not (tmp_path / "checkpoints").exists()
