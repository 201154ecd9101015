"""prepare runs `dvc repro`, once, on the file that DVC reads."""

import sys
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
