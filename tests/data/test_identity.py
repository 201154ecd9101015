"""Pseudonyms: consistent under one key, unrelated under another, the key outside the repository."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.converters import convert_dicom
from mg3d import paths
from mg3d.data.identity import has_secret_key, pseudonym
from mg3d.params import ConvertVolumes, DicomVolumes

SECRET = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MG3D_ID_KEY", raising=False)
    monkeypatch.delenv("MG3D_ID_KEY_FILE", raising=False)


def test_hmac_by_hand() -> None:
    """printf 'patient\\0P1' | openssl dgst -sha256 -hmac mg3d-demo"""
    assert pseudonym("patient", " P1 ") == "patient-" + HMAC_OF_P1
    assert not has_secret_key()


HMAC_OF_P1 = "3b42a238fa1a"


def test_a_file_and_the_environment_give_the_same_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = pseudonym("patient", "P1")
    monkeypatch.setenv("MG3D_ID_KEY", SECRET)
    keyed = pseudonym("patient", "P1")
    monkeypatch.delenv("MG3D_ID_KEY")
    (tmp_path / "key").write_text(SECRET + "\n")
    monkeypatch.setenv("MG3D_ID_KEY_FILE", str(tmp_path / "key"))
    assert has_secret_key()
    assert pseudonym("patient", "P1") == keyed != demo
    assert pseudonym("study", "P1").split("-")[1] != keyed.split("-")[1]


def test_a_bad_key_file_is_refused_and_the_key_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, message: str) -> None:
        monkeypatch.setenv("MG3D_ID_KEY_FILE", str(path))
        with pytest.raises(ValueError, match=message) as caught:
            pseudonym("patient", "P1")
        assert "hunter2" not in str(caught.value)

    refused(tmp_path / "absent", "is no file: write the key into it")
    (tmp_path / "short").write_text("hunter2")
    refused(tmp_path / "short", "has 7 bytes: use 16 or more")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "key").write_text("hunter2" * 4)
    refused(tmp_path / "key", "lies in the repository: move it out of it")
    monkeypatch.setenv("MG3D_ID_KEY", SECRET)
    refused(tmp_path / "key", "both set: unset one")


def test_real_data_can_demand_a_key(
    tmp_path: Path, write_series: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "dicom")
    stage = ConvertVolumes(num_workers=1, require_id_key=True)
    with pytest.raises(ValueError, match=r"require_id_key is true.*set MG3D_ID_KEY"):
        convert_dicom(tmp_path / "dicom", tmp_path / "out", DicomVolumes(), stage)
    monkeypatch.setenv("MG3D_ID_KEY", SECRET)
    assert (
        convert_dicom(tmp_path / "dicom", tmp_path / "out", DicomVolumes(), stage).summary()["used"]
        == 1
    )
