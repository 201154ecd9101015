"""The edge: mistakes end with one line naming key and remedy, before anything runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mg3d import paths

PARAMS = Path(__file__).parents[1] / paths.PARAMS


def mg3d(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mg3d.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_without_data_it_says_what_to_do(tmp_path: Path) -> None:
    ended = mg3d("convert_volumes", "dicom_export", "--params", str(PARAMS), cwd=tmp_path)
    assert ended.returncode == 2
    assert "make demo" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"num_steps: \d+", "num_step: 9", "did you mean num_steps?"),
        (r"batch_size: \d+", "batch_size: 15", "make it a multiple, e.g. 14"),
        (r"learning_rate: \S+", "learning_rate: -1", "pretrain.learning_rate"),
    ],
)
def test_a_wrong_param_fails_before_anything_runs(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = PARAMS.read_text()
    head, section = text.split("\npretrain:", 1)
    (tmp_path / "params.yaml").write_text(head + "\npretrain:" + re.sub(old, new, section, count=1))
    ended = mg3d("pretrain", cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_unknown_task_lists_the_known_ones(tmp_path: Path) -> None:
    arguments = ("evaluate", "checkpoint", "--task", "luna", "--out", "out")
    ended = mg3d(*arguments, "--params", str(PARAMS), cwd=tmp_path)
    assert ended.returncode == 2
    assert "stoic2021" in ended.stderr


def test_ledger_without_stages_says_what_to_run(tmp_path: Path) -> None:
    ended = mg3d("ledger", cwd=tmp_path)
    assert ended.returncode == 2
    assert "dvc repro" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--force",), "--force goes with --resume RUN"),
        (("--resume", "runs/none", "--force"), "runs/none has no checkpoints/"),
    ],
)
def test_force_needs_a_run(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    ended = mg3d("pretrain", *arguments, "--params", str(PARAMS), cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr


@pytest.mark.parametrize("arguments", [(), ("models:/mg3d@champion", "--patient", "patient-0")])
def test_lineage_is_of_a_model_or_of_a_patient(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ended = mg3d("lineage", *arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert "name a model" in ended.stderr
    assert not list(tmp_path.iterdir())
