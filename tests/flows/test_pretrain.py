"""pretrain returns the child's last line, tries twice, and does not try a wrong file."""

from pathlib import Path
from typing import Any

import pytest

from flows import child, pretrain
from mg3d import launch

CALL = ["pretrain", "prepared", "--out", "runs", "--params", "params.yaml"]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "train", pretrain.train.with_options(retry_delay_seconds=0))


def test_returns_the_checkpoint_that_the_child_names_last(children: Any) -> None:
    assert pretrain.pretrain() == Path("runs/pretrain-0/checkpoints/step-000002")
    assert children.started() == [CALL]


def test_a_crash_is_tried_once_more(children: Any) -> None:
    children.fail("pretrain")
    assert pretrain.pretrain() == Path("runs/pretrain-0/checkpoints/step-000002")
    assert children.started() == [CALL, CALL]


def test_being_told_to_stop_is_not_a_crash(children: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys; from pathlib import Path; told = Path('told').read_text().split() "
        "if Path('told').exists() else []; Path('told').write_text(' '.join([*told, 'x'])); "
        f"print('the end'); sys.exit({launch.RESUMABLE} if len(told) < 3 else 0)"
    )
    monkeypatch.setattr(child, "MG3D", (*child.MG3D[:1], "-c", script))
    assert pretrain.pretrain() == Path("the end")


def test_two_crashes_are_a_failure(children: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MG3D", (*child.MG3D[:1], "-c", "raise SystemExit('loss is nan')"))
    with pytest.raises(launch.CommandError, match="loss is nan"):
        pretrain.pretrain()


def test_a_misspelt_key_fails_before_a_child_starts(children: Any) -> None:
    head, section = Path("params.yaml").read_text().split("\npretrain:", 1)
    misspelt = section.replace("num_steps:", "num_stps:", 1)
    Path("params.yaml").write_text(f"{head}\npretrain:{misspelt}")
    with pytest.raises(ValueError, match=r"pretrain.num_stps: unknown key; did you mean num_steps"):
        pretrain.pretrain()
    assert children.started() == []
