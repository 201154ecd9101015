"""The main job's order, and that a failure stops it before registration."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline import pipeline
from mg3d.params import load_params

RUN = "runs/pretrain-0"


def verbs(calls: list[list[str]]) -> list[str]:
    return [call[0] for call in calls]


def test_the_order(children: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert pipeline() == Path(RUN)
    calls = children.started()
    assert verbs(calls) == [
        "dvc",
        "pretrain",
        *["evaluate"] * (len(calls) - 3),
        "register",
    ]
    assert calls[-1] == ["register", RUN, "--params", "params.yaml"]
    assert "result of register" in capfd.readouterr().out.splitlines()
    events = [(event, verb) for event, verb, *_ in children.events()]
    assert events.index(("start", "register")) > max(
        i for i, event in enumerate(events) if event == ("end", "evaluate")
    )


def test_what_the_form_changes_is_one_file_for_every_step(children: Any) -> None:
    pipeline(tasks=["luna16"], modes=["frozen"], seed=3, overrides={"pretrain.num_steps": 7})
    calls = children.started()
    assert verbs(calls) == ["dvc", "pretrain", "evaluate", "register"]
    files = {call[call.index("--params") + 1] for call in calls[1:]}
    (file,) = map(Path, files)
    asked = {"pretrain.num_steps": 7, "pretrain.seed": 3, "evaluate.modes": ["frozen"]}
    assert file.parent == Path("runs/params")
    assert load_params(file) == load_params(Path("params.yaml"), asked)


def test_what_failed_is_not_registered(children: Any) -> None:
    children.fail("stoic2021")
    with pytest.raises(RuntimeError, match="downstream tasks failed: stoic2021"):
        pipeline()
    assert "register" not in verbs(children.started())


def test_a_misspelt_key_on_the_command_line_is_one_line_before_any_server(tmp_path: Path) -> None:
    wrong = tmp_path / "params.yaml"
    wrong.write_text(Path("params.yaml").read_text().replace("clip_norm", "clip_nrm"))
    command = [sys.executable, "-m", "flows.pipeline", "--params", str(wrong)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "pretrain.clip_nrm: unknown key; did you mean clip_norm?" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Starting" not in done.stdout + done.stderr


def test_flows_import_no_framework() -> None:
    code = "import sys, flows.pipeline, flows.serve; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "monai", "mlflow", "pandas", "mg3d.cli"}
    assert not heavy & set(done.stdout.split())
