"""Each child has one GPU, and a GPU as many children as the params say."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from mg3d import gpus


def test_visible_is_what_cuda_would_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for listed, found in (
        ("0,1", ["0", "1"]),
        ("3, GPU-5a", ["3", "GPU-5a"]),
        ("1,-1,2", ["1"]),
        ("", []),
    ):
        monkeypatch.setenv(gpus.VISIBLE, listed)
        assert gpus.visible_gpus() == found
    monkeypatch.delenv(gpus.VISIBLE)
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path / "absent")
    assert gpus.visible_gpus() == []
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path / "gpus")
    assert gpus.visible_gpus() == ["0", "1"]


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "4,5")
    assert gpus.places(2, None) == ["4", "5", "4", "5"]
    assert gpus.places(1, 1) == ["4"]
    assert gpus.places(3, 0) == ["", "", ""]
    with pytest.raises(ValueError, match=r"num_gpus is 3, and 2 are visible: lower it"):
        gpus.places(1, 3)
    monkeypatch.setenv(gpus.VISIBLE, "")
    assert gpus.places(2, None) == [None, None]


def test_a_place_is_held_by_one_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "4,5")
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    with ExitStack() as held:
        taken = [held.enter_context(gpus.place(2, None)) for _ in range(4)]
        assert taken == ["4", "5", "4", "5"]

        def stop(seconds: float) -> None:
            raise TimeoutError

        monkeypatch.setattr(gpus.time, "sleep", stop)
        with pytest.raises(TimeoutError), gpus.place(2, None):
            pass
    with gpus.place(2, None) as again:
        assert again == "4"
    with gpus.place(2, 0) as none, gpus.place(2, 0) as other:
        assert (none, other) == ("", "")
