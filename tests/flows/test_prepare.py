"""prepare runs `dvc repro`, once, on the file that DVC reads."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import child
from flows.prepare import SECTIONS_OF_STAGES, prepare
from mg3d import launch

STAGES = {"stages": {"copy": {"cmd": "cp a b", "deps": ["a"], "outs": ["b"]}}}


def test_runs_dvc_repro_once(children: Any) -> None:
    prepare()
    assert children.started() == [["dvc", "repro"]]


def test_real_dvc_makes_what_is_stale_and_then_nothing(
    children: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(child, "DVC", (sys.executable, "-m", "dvc"))
    Path("a").write_text("content")
    Path("dvc.yaml").write_text(yaml.safe_dump(STAGES))
    launch.run([*child.DVC, "init", "--no-scm", "-q"])
    prepare()
    assert Path("b").read_text() == "content"
    assert "Running stage 'copy'" in capsys.readouterr().out
    prepare()
    assert "up to date" in capsys.readouterr().out


STAGE_UNTIL_GO = "touch begun && until [ -e go ]; do sleep 0.2; done && cp a b"


@pytest.fixture
def other_dvc(children: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A `dvc repro` as a person would start it, in its stage, which lasts until "go" is there."""
    monkeypatch.setattr(child, "DVC", (sys.executable, "-m", "dvc"))
    monkeypatch.setattr(child, "DVC_PAUSE_S", 1.0)
    Path("a").write_text("content")
    stage = {"cmd": STAGE_UNTIL_GO, "deps": ["a"], "outs": ["b"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"copy": stage}}))
    launch.run([*child.DVC, "init", "--no-scm", "-q"])
    process = subprocess.Popen([*child.DVC, "repro"], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not Path("begun").exists():
            assert time.monotonic() < deadline, "the stage has not begun"
            time.sleep(0.05)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=15)


def test_another_dvc_is_waited_for(
    other_dvc: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wait(seconds: float) -> None:
        Path("go").touch()
        other_dvc.wait(timeout=60)

    monkeypatch.setattr(child, "pause", wait)
    prepare()
    assert other_dvc.returncode == 0
    output = capsys.readouterr().out
    assert "waiting: another dvc is at work in this folder" in output
    assert "up to date" in output.splitlines()[-1]


def test_a_dvc_that_does_not_end_is_named_after_a_while(
    other_dvc: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "DVC_WAIT_S", 0.0)
    words = rf"another dvc has been at work(.|\n)*PID {other_dvc.pid}"
    with pytest.raises(RuntimeError, match=words):
        prepare()


def test_a_failing_stage_fails_the_flow_with_its_last_lines(
    children: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child, "DVC", (sys.executable, "-c", "raise SystemExit('no disk left')"))
    with pytest.raises(launch.CommandError, match="no disk left"):
        prepare()


def test_a_profile_with_other_data_is_refused_before_anything_runs(children: Any) -> None:
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["segment_sentences"]["mode"] = "clause"
    Path("other.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match=r"segment_sentences of other.yaml differs .* copy other"):
        prepare(Path("other.yaml"))
    assert children.started() == []


def test_the_sections_are_those_that_the_stages_read() -> None:
    stages = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    read = {key for stage in stages.values() for key in stage.get("do", stage)["params"]}
    assert set(SECTIONS_OF_STAGES) == {key for key in read if not key.startswith("sources.$")}


def test_a_fresh_clone_has_no_folder_for_prefect_yet(tmp_path: Path) -> None:
    home = tmp_path / "runs" / "prefect"
    launch.run([sys.executable, "-c", "import flows"], env={"PREFECT_HOME": str(home)})
    assert home.is_dir()
