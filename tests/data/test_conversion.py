"""convert_volumes: what was done is not done again, and a kill leaves no trace."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.converters import convert_dicom, reasons
from data.killing import kill_stage
from mg3d.params import ConvertVolumes, DicomVolumes

PARAMS = DicomVolumes(min_slices=4)
CONVERT = """
import sys
from pathlib import Path
from mg3d.data.conversion import convert_volumes
from mg3d.params import ConvertVolumes, DicomVolumes
source = DicomVolumes(path=Path(sys.argv[1]), min_slices=4)
convert_volumes(source, Path(sys.argv[2]), ConvertVolumes(num_workers=2))
"""


def files(out: Path) -> dict[str, bytes]:
    found = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "nifti").glob("study*")}


def test_killed_and_started_again_converts_the_remainder_only(
    tmp_path: Path, write_series: Callable
) -> None:
    dicom, out = tmp_path / "dicom", tmp_path / "out"
    for number in range(24):
        hu = np.random.default_rng(number).integers(-1000, 1000, (8, 96, 96))
        ids = {"uid": f"2.{number}.1", "study": f"2.{number}", "patient": f"P{number}"}
        write_series(dicom / f"{number}", hu=hu, **ids)
    write_series(dicom / "few", uid="3.1", study="3", patient="P3", hu=hu[:4])
    arguments = [str(dicom), str(out)]
    kill_stage(CONVERT, arguments, lambda: len(list(out.glob("nifti/study*.json"))), at_least=4)
    done = {name: at for name, at in times(out).items() if name.endswith(".json")}
    assert 4 <= len(done) < 25

    convert_dicom(dicom, out, PARAMS)
    assert done.items() <= times(out).items()
    convert_dicom(dicom, tmp_path / "whole", PARAMS)
    assert files(out) == files(tmp_path / "whole")


def test_a_study_is_converted_again_if_what_decides_it_changed(
    tmp_path: Path, write_series: Callable, edit_slice: Callable
) -> None:
    dicom, out = tmp_path / "dicom", tmp_path / "out"
    write_series(dicom, uid="1.1", study="1", prefix="a")
    of_two = write_series(dicom, uid="2.1", study="2", prefix="b")
    write_series(dicom, uid="3.1", study="3", prefix="c", hu=np.zeros((5, 4, 4)))

    def names(params: DicomVolumes = PARAMS, **stage: float) -> set[str]:
        convert_dicom(dicom, out, params, ConvertVolumes(num_workers=1, **stage))
        return {path.name for path in (out / "nifti").iterdir()}

    first = names()
    assert len(first) == 6
    assert names() == first
    edit_slice(of_two[0], RescaleIntercept=-1000.0)
    edited = names()
    assert len(first - edited) == len(edited - first) == 2  # one volume, and what became of it
    assert not edited & names(PARAMS.model_copy(update={"padding_hu": None}))


def test_a_refusal_is_remembered_too(tmp_path: Path, write_series: Callable) -> None:
    dicom, out = tmp_path / "dicom", tmp_path / "out"
    write_series(dicom, prefix="a")
    write_series(dicom, uid="2.1", study="2", prefix="b", PixelData=b"\0" * 10)
    for _ in range(2):
        convert_dicom(dicom, out, PARAMS)
        assert reasons(out) == {"used": 8, "undecodable": 8}
    assert len(list((out / "nifti").glob("*.json"))) == 2


def test_another_key_is_another_study(
    tmp_path: Path, write_series: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "dicom")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    before = set(times(tmp_path / "out"))
    monkeypatch.setenv("MG3D_ID_KEY", "0123456789abcdef-another")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert not before & set(times(tmp_path / "out"))
