"""The main job's order, and that a failure stops it before registration."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline import pipeline

RUN = "runs/pretrain-0"


def verbs(calls: list[list[str]]) -> list[str]:
    return [call[0] for call in calls]


def test_the_order(children: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert pipeline() == Path(RUN)
    calls = children.started()
    assert verbs(calls) == [
        "dvc",
        "pretrain",
        *["evaluate"] * (len(calls) - 4),
        "register",
        "table",
    ]
    assert calls[-2:] == [["register", RUN, "--params", "params.yaml"], ["table", RUN]]
    assert "result of table" in capfd.readouterr().out.splitlines()
    events = [(event, verb) for event, verb, *_ in children.events()]
    assert events.index(("start", "register")) > max(
        i for i, event in enumerate(events) if event == ("end", "evaluate")
    )


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
