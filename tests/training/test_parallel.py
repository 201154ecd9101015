"""Two ranks, replicated or sharded: the same training, the same files, cut off or not."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from tiny_prepared import CONTRACT, OBJECTIVE, PRETRAIN, tiny_model, write_prepared

from mg3d import paths
from mg3d.training.pretrain import pretrain
from mg3d.training.record import read_metrics

FIGURES = {"losses.png", "reconstruction.png", "similarity.png"}
FILES = (paths.WEIGHTS, paths.TRAINING_STATE)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "encoder"
    tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def runs(prepared: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs of `ranks.lies`, one of them killed before."""
    folder = tmp_path_factory.mktemp("runs")
    ranks.run_forked("killed+lies", 2, folder, str(prepared), str(model))
    return folder


def _losses(run: Path) -> list[dict[str, float]]:
    """Metrics of each step, without the speed."""
    lines = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if "samples_per_s" not in k} for line in lines]


def _tensors(run: Path, step: int, name: str) -> ranks.Tensors:
    return load_file(run / paths.CHECKPOINTS / f"step-{step:06d}" / name)


def _weights(run: Path, step: int) -> torch.Tensor:
    weights = _tensors(run, step, paths.WEIGHTS).values()
    return torch.cat([w.flatten() for w in weights if w.is_floating_point()])


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("name", "whole"), [("killed", "none"), ("full_full", "full")])
def test_resuming_on_as_many_ranks_changes_no_bit(name: str, whole: str, runs: Path) -> None:
    """Weights, optimizer and random state, after SIGKILL of all ranks or an error."""
    for file in FILES:
        found, expected = (_tensors(runs / run, 5, file) for run in (name, whole))
        assert found.keys() == expected.keys()
        assert [key for key in found if not torch.equal(found[key], expected[key])] == []
    assert _losses(runs / name) == _losses(runs / whole)


@pytest.mark.parametrize("name", ["full", "none_full"])
def test_a_sharded_training_is_the_replicated_one(name: str, runs: Path) -> None:
    """Also where the layout changes on the way, by the same files."""
    for file in FILES:
        found, expected = (_tensors(runs / run, 5, file) for run in (name, "none"))
        assert {k: (t.shape, t.dtype) for k, t in found.items()} == {
            k: (t.shape, t.dtype) for k, t in expected.items()
        }
    for found, expected in zip(_losses(runs / name), _losses(runs / "none"), strict=True):
        keys = [key for key in expected if "/train/" in key]  # the gradient's norm too
        assert [found[k] for k in keys] == pytest.approx([expected[k] for k in keys], rel=1e-3)
    for step in (4, 5):  # Adam turns rounding into differences
        assert _relative(_weights(runs / name, step), _weights(runs / "none", step)) < 1e-3


def test_one_rank_goes_on_where_two_shards_were(
    runs: Path, prepared: Path, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "full", tmp_path / "run")
    assert {file.name for file in (tmp_path / "run" / paths.FIGURES).iterdir()} == FIGURES
    shutil.rmtree(tmp_path / "run" / paths.CHECKPOINTS / "step-000005")
    every = dict.fromkeys(("checkpoint_every_steps", "validate_every_steps"), 2)
    params = PRETRAIN.model_copy(update={"num_steps": 5, **every})
    arguments = (prepared, tmp_path / "run", CONTRACT, tiny_model(model), OBJECTIVE, params)
    pretrain(*arguments, lambda *_: None)
    assert _relative(_weights(tmp_path / "run", 5), _weights(runs / "full", 5)) < 1e-3
