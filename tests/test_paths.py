"""A write is whole or did not happen."""

from pathlib import Path

import pytest

from mg3d.paths import atomic_write, stage_folder, task_data


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_into_a_new_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "table.parquet"
    with atomic_write(target) as temporary:
        assert temporary.parent == target.parent  # a rename within one file system
        assert temporary.suffix == ".parquet"  # writers choose their format by it
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == ["table.parquet"]


def test_a_failing_block_leaves_the_old_file_and_no_leftovers(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")

    def half() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("ne")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        half()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["result.json"]


def test_ctrl_c_leaves_no_leftovers(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_write(tmp_path / "result.json"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_a_writer_that_replaces_the_temporary_file_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "weights.safetensors"
    with atomic_write(target) as temporary:
        temporary.unlink()
        temporary.write_bytes(b"made anew")
    assert target.read_bytes() == b"made anew"


def test_the_content_is_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr("os.fsync", lambda handle: events.append("fsync"))
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (events.append("rename"), replace(self, to))[1]
    )
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("a")
    assert events == ["fsync", "rename", "fsync"]  # the content, the name, the folder


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_folders_have_their_names_here() -> None:
    assert stage_folder("pack_volumes") == Path("prepared/pack_volumes")
    assert stage_folder("pack_volumes", Path("/x")) == Path("/x/pack_volumes")
    assert task_data("stoic2021") == Path("data/downstream/stoic2021")
