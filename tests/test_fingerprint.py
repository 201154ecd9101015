"""Fingerprints see what matters, and say what changed."""

from pathlib import Path

import pytest

from mg3d import fingerprint
from mg3d.fingerprint import Fingerprint, pretrain_fingerprint
from mg3d.params import load_params

ROOT = Path(__file__).parents[1]


def test_changes_name_the_leaf_and_both_values() -> None:
    old = Fingerprint({"pretrain": {"seed": 0, "batch_size": 8}, "data": {"a": "1"}})
    new = Fingerprint({"pretrain": {"seed": 0, "batch_size": 4}, "data": {"a": "1", "b": "2"}})
    assert old.changes(new) == ["data.b: absent -> 2", "pretrain.batch_size: 8 -> 4"]
    assert old.changes(old) == []
    assert old.digest != new.digest
    assert len(old.digest) == 16


def test_the_order_of_keys_does_not_matter() -> None:
    assert Fingerprint({"a": 1, "b": 2}).digest == Fingerprint({"b": 2, "a": 1}).digest


def test_code_sees_bytes_and_names(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    source = tmp_path / "models" / "net.py"
    source.write_text("x = 1\n")
    (tmp_path / "one.py").write_text("y = 1\n")
    before = fingerprint.code(["models", "one.py"], tmp_path)
    (tmp_path / "other.py").write_text("z = 1\n")
    (tmp_path / "models" / "notes.txt").write_text("no code")
    assert fingerprint.code(["models", "one.py"], tmp_path) == before
    source.write_text("x = 2\n")
    assert fingerprint.code(["models", "one.py"], tmp_path)["models"] != before["models"]
    source.write_text("x = 1\n")
    source.rename(source.with_name("renamed.py"))
    assert fingerprint.code(["models", "one.py"], tmp_path)["models"] != before["models"]


def test_pretraining_depends_on_sections_data_code_and_libraries(tmp_path: Path) -> None:
    params = load_params(ROOT / "params.yaml")
    sections = (params.contract, params.model, params.objective, params.pretrain)
    with pytest.raises(ValueError, match=r"no build_manifest.manifest\.parquet.*dvc repro"):
        pretrain_fingerprint(tmp_path, *sections)
    for file in fingerprint.PRETRAIN_DATA:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("table")
    old = pretrain_fingerprint(tmp_path, *sections)
    assert set(old.parts) == {
        "contract", "model", "objective", "pretrain", "data", "code", "libraries"
    }  # fmt: skip
    assert old.parts["libraries"]["torch"].startswith("2.")
    assert pretrain_fingerprint(tmp_path, *sections) == old
    (tmp_path / "build_manifest" / "splits.json").write_text("other")
    slower = params.pretrain.model_copy(update={"learning_rate": 0.5})
    new = pretrain_fingerprint(tmp_path, *sections[:3], slower)
    changed = old.changes(new)
    assert [line.split(":")[0] for line in changed] == [
        "data.build_manifest/splits.json",
        "pretrain.learning_rate",
    ]


def test_every_named_source_exists() -> None:
    for part in fingerprint.PRETRAIN_CODE:
        assert (fingerprint.PACKAGE / part).exists(), part
