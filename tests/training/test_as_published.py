"""As published on two ranks, through training, and back from its checkpoint."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from tiny_prepared import CONTRACT, OBJECTIVE, PRETRAIN, tiny_model, write_prepared

from mg3d import paths
from mg3d.models.as_published import MG3DAsPublished
from mg3d.training.checkpoint import latest, load_encoder, load_model
from mg3d.training.pretrain import pretrain

AS_PUBLISHED = OBJECTIVE.model_copy(update={"as_published": True})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "encoder"
    tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def both(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ranks.Tensors]:
    """Two ranks with samples 0, 1 and 2, 3."""
    return ranks.run_forked("as_published", 2, tmp_path_factory.mktemp("both"), str(model))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ranks.Tensors]:
    """One process with the samples of both ranks, and of either."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        places: ranks.as_published(0, folder, str(model), places) for places in ("0123", "01", "23")
    }


def _gradient(found: ranks.Tensors, term: str) -> torch.Tensor:
    """With respect to all parameters, in one row."""
    keys = sorted(key for key in found if key.startswith(f"{term}/"))
    return torch.cat([found[key].flatten() for key in keys])


@pytest.mark.parametrize(("term", "factor"), [("cml", 0.5), ("dfa", 0.5), ("itc", 1.0)])
def test_on_two_ranks_the_published_contrast_has_half_its_gradient(
    term: str, factor: float, both: list[ranks.Tensors], alone: dict[str, ranks.Tensors]
) -> None:
    """The value is that of the global batch. ITC, which is ours, stays exact."""
    expected = _gradient(alone["0123"], term)
    assert expected.norm() > 1e-3
    for found in both:
        torch.testing.assert_close(found[term], alone["0123"][term].detach())
        torch.testing.assert_close(_gradient(found, term), factor * expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("term", ["mlm", "sfr", "mim", "ssm"])
def test_everything_else_is_of_each_rank_alone(
    term: str, both: list[ranks.Tensors], alone: dict[str, ranks.Tensors]
) -> None:
    """Pairs of sentences are of one rank, and so are means: few masked words count more each."""
    own = [alone["01"], alone["23"]]
    for found, expected in zip(both, own, strict=True):
        torch.testing.assert_close(found[term], expected[term].detach())
    mean = (_gradient(own[0], term) + _gradient(own[1], term)) / 2
    torch.testing.assert_close(_gradient(both[0], term), mean, rtol=1e-9, atol=1e-12)
    if term in ("mlm", "ssm"):  # the others count as much on both ranks
        values = torch.stack([expected[term].detach() for expected in own])
        assert (values.mean() - alone["0123"][term].detach()).abs() > 1e-5


class Ended(Exception):
    """Raised in the middle of a training."""


def test_a_training_resumes_bit_by_bit_and_loads_again(model: Path, tmp_path: Path) -> None:
    """The dropout goes on where it was; model and encoder come back as what they were."""
    write_prepared(tmp_path / "prepared")
    params = tiny_model(model)
    vision = params.vision.model_copy(update={"token_projector": True})
    params = params.model_copy(update={"vision": vision})
    steps = PRETRAIN.model_copy(update={"num_steps": 2, "checkpoint_every_steps": 1})

    def run(out: Path, on_metrics: Any) -> Path:
        prepared = tmp_path / "prepared"
        return pretrain(prepared, out, CONTRACT, params, AS_PUBLISHED, steps, on_metrics)

    def end(step: int, metrics: dict[str, float]) -> None:
        if step == 2:
            raise Ended

    whole = run(tmp_path / "whole", lambda *_: None)
    with pytest.raises(Ended):
        run(tmp_path / "resumed", end)
    stopped = latest(tmp_path / "resumed" / paths.CHECKPOINTS)
    assert stopped is not None
    assert stopped.name == "step-000001"
    resumed = run(tmp_path / "resumed", lambda *_: None)
    one, other = (load_file(folder / paths.WEIGHTS) for folder in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)

    loaded = load_model(whole)
    assert type(loaded.model) is MG3DAsPublished
    assert loaded.objective_params == AS_PUBLISHED
    assert not loaded.model.text_encoder.transformer.training
    assert all(torch.equal(x, one[name]) for name, x in loaded.model.state_dict().items())
    encoder, coverage, _ = load_encoder(whole)
    assert coverage.fraction == 1
    volume = torch.rand(1, 1, 64, 32, 32)
    with torch.no_grad():
        expected = loaded.model.vision_encoder.features(volume)
        assert torch.equal(encoder.features(volume), expected)
