"""convert_dicom against independent converters, and every kind of bad input."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from data.converters import as_ras, convert_dicom, dcm2niix, load, reasons, simpleitk
from mg3d.data.ct.geometry import arrange
from mg3d.data.ct.header import read_header
from mg3d.data.ct.pixels import read_volume
from mg3d.data.ct.refused import Refused
from mg3d.data.identity import pseudonym
from mg3d.ledger import Reason
from mg3d.params import ConvertVolumes, DicomVolumes

PARAMS = DicomVolumes(min_slices=4)
Write = Callable[..., list[Path]]


CASES = {
    "axial": {},
    "feet_first": {"directions": ((-1.0, 0, 0), (0, -1.0, 0))},
    "non_square": {"hu": np.random.default_rng(3).integers(-1000, 900, (9, 7, 13))},
    "fractional_slope": {"slope": 0.5, "intercept": -1000.0},
    "oblique_12": {"degrees": 12.0},
    "oblique_30": {"degrees": 30.0, "spacing": (0.7, 0.9)},
    "coronal": {"directions": ((1.0, 0, 0), (0, 0, -1.0))},
    "sagittal": {"directions": ((0, 1.0, 0), (0, 0, -1.0))},
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_voxel_for_voxel_with_other_converters(
    name: str, tmp_path: Path, write_series: Write, oblique_directions: Callable
) -> None:
    case = dict(CASES[name])
    if degrees := case.pop("degrees", None):
        case["directions"] = oblique_directions(degrees)
    files = write_series(tmp_path / "dicom", **case)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    ours, affine = as_ras(load(tmp_path / "out"))
    written = load(tmp_path / "out")
    assert nibabel.aff2axcodes(written.affine) == ("R", "A", "S")
    assert written.get_data_dtype() == np.int16
    for theirs in (simpleitk(files), dcm2niix(tmp_path / "dicom", tmp_path / "dcm2niix")):
        array, their_affine = as_ras(theirs)
        np.testing.assert_array_equal(ours, np.rint(array))
        np.testing.assert_allclose(affine, their_affine, atol=1e-3)


def test_header_says_where_and_in_which_unit(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "dicom")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    header = load(tmp_path / "out").header
    assert header.get_xyzt_units()[0] == "mm"
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_zooms(), (1.5, 2.0, 3.0))
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-5)
    # By hand: 12 columns of 1.5 mm from LPS x = -10, so RAS x runs from 10 down to -6.5.
    np.testing.assert_allclose(header.get_sform()[:3, 3], (10 - 11 * 1.5, -20 - 9 * 2, -30))


def test_rescale_is_each_slices_own(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    hu = np.full((5, 4, 4), 100)
    files = write_series(tmp_path / "dicom", hu=hu)
    edit_slice(files[2], RescaleIntercept=-1014.0, RescaleSlope=1.0)
    edit_slice(files[3], RescaleSlope=2.0)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    volume = np.asanyarray(load(tmp_path / "out").dataobj)
    # stored 1124: 1124-1014 = 110 and 2*1124-1024 = 1224
    assert volume[0, 0].tolist() == [100, 100, 110, 1224, 100]


def test_a_tilted_gantry_gives_a_sheared_affine(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    files = write_series(tmp_path / "dicom")
    for index, path in enumerate(files):
        edit_slice(path, ImagePositionPatient=[-10.0, 20.0 + 0.5 * index, -30.0 + 3 * index])
    params = PARAMS.model_copy(update={"gantry_tilt": "keep"})
    convert_dicom(tmp_path / "dicom", tmp_path / "out", params)
    image = load(tmp_path / "out")
    np.testing.assert_allclose(image.affine[:3, 2], (0, -0.5, 3), atol=1e-5)
    assert int(image.header["qform_code"]) == 0


def test_hu_beyond_int16_is_clipped(tmp_path: Path, write_series: Write) -> None:
    hu = np.zeros((5, 4, 4))
    hu[0, 0, 0] = 40000
    write_series(tmp_path / "dicom", hu=hu)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert np.asanyarray(load(tmp_path / "out").dataobj).max() == 32767


def test_manifest_and_pseudonyms(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "dicom", patient="Jane 7", accession="ACC-9")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    (row,) = pd.read_parquet(tmp_path / "out/manifest.parquet").to_dict("records")
    assert row == {
        "study_id": pseudonym("study", "1.2.3"),
        "patient_id": pseudonym("patient", "Jane 7"),
        "accession_id": pseudonym("accession", "ACC-9"),
        "series_id": pseudonym("series", "1.2.3.1"),
        "nifti": Path(load(tmp_path / "out").get_filename()).name,
        "num_slices": 8,
        "shape_x_voxels": 12,
        "shape_y_voxels": 10,
        "shape_z_voxels": 8,
        "spacing_x_mm": 1.5,
        "spacing_y_mm": 2.0,
        "spacing_z_mm": 3.0,
    }
    for path in (tmp_path / "out").rglob("*.json*"):
        assert "Jane" not in path.read_text()
        assert "ACC-9" not in path.read_text()


def make_bad_inputs(root: Path, write_series: Write, edit_slice: Callable) -> Counter[str]:
    """A folder with one good study and every bad input; returns files per expected reason."""
    expected: Counter[str] = Counter()

    def series(number: int, reason: str, **case: object) -> list[Path]:
        study = str(case.pop("study", f"1.9.{number}"))
        files = write_series(
            root / "all in one folder",
            uid=f"1.9.{number}.5",
            study=study,
            patient=str(case.pop("patient", f"P{number}")),
            accession=f"A{number}",
            prefix=f"s{number}-",
            **case,
        )
        expected[reason] += len(files)
        return files

    series(1, "used")
    truncated = series(2, "truncated")[3]
    truncated.write_bytes(truncated.read_bytes()[:-50])
    series(3, "missing_slice")[4].unlink()
    expected["missing_slice"] -= 1
    edit_slice(series(4, "mixed_patients")[0], PatientID="P4b")
    series(5, "localizer", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    series(6, "reformat", ImageType=["DERIVED", "SECONDARY", "MPR"])
    series(7, "not_ct", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    series(8, "too_few_slices", hu=np.zeros((3, 4, 4)))
    series(9, "missing_tag", ImageOrientationPatient=None)
    edit_slice(series(10, "mixed_geometry")[1], PixelSpacing=[1.0, 1.0])
    twice = series(11, "duplicate_position")
    edit_slice(twice[1], ImagePositionPatient=[-10, 20, -30])
    series(12, "undecodable", PixelData=b"\0" * 10)
    edit_slice(series(13, "mixed_studies")[0], StudyInstanceUID="1.9.13.0")
    series(14, "multi_frame", SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1")
    series(15, "used", study="1.9.15")
    series(16, "not_chosen", study="1.9.15", patient="P15", hu=np.zeros((5, 4, 4)))
    series(17, "mixed_patients", study="1.9.17")
    series(18, "mixed_patients", study="1.9.17", patient="P17b")
    edit_slice(series(19, "mixed_geometry")[4], ImagePositionPatient=[10, 20, -18])
    series(20, "missing_tag", PatientID="")

    (root / "notes.txt").write_text("Call me back about the scan.")
    (root / "empty").write_bytes(b"")
    (root / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL")
    good = sorted((root / "all in one folder").glob("s1-*"))[0]
    (root / "cut early").write_bytes(good.read_bytes()[:300])
    shutil.copy(good, root / "copy of a file")
    expected.update({"not_dicom": 2, "truncated": 2, "duplicate_file": 1})
    return expected


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_bad_input_ends_in_the_ledger(
    num_workers: int, tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    expected = make_bad_inputs(tmp_path / "dicom", write_series, edit_slice)
    stage = ConvertVolumes(num_workers=num_workers)
    ledger = convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS, stage)
    assert reasons(tmp_path / "out") == dict(expected)
    summary = ledger.summary()
    assert summary["inputs"] == summary["used"] + summary["quarantined"]
    assert sum(reasons(tmp_path / "out").values()) == sum(
        path.is_file() for path in (tmp_path / "dicom").rglob("*")
    )
    manifest = pd.read_parquet(tmp_path / "out/manifest.parquet")
    assert set(manifest["study_id"]) == {pseudonym("study", s) for s in ("1.9.1", "1.9.15")}
    assert {p.name for p in (tmp_path / "out/nifti").glob("*.nii.gz")} == set(manifest["nifti"])


def test_the_next_series_stands_in_when_the_chosen_one_cannot_be_decoded(
    tmp_path: Path, write_series: Write
) -> None:
    write_series(tmp_path / "dicom", uid="1.2.3.1", prefix="a", PixelData=b"\0" * 10)
    write_series(tmp_path / "dicom", uid="1.2.3.2", prefix="b", hu=np.zeros((5, 4, 4)) + 7)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"undecodable": 8, "used": 5}
    assert np.asanyarray(load(tmp_path / "out").dataobj).max() == 7


def test_choice_prefers_coverage_then_slices(tmp_path: Path, write_series: Write) -> None:
    thick, thin, partial = np.zeros((10, 4, 4)), np.zeros((30, 4, 4)) + 1, np.zeros((40, 4, 4)) + 2
    write_series(tmp_path / "dicom", uid="1.2.3.1", prefix="a", hu=thick, step_mm=9.0)
    write_series(tmp_path / "dicom", uid="1.2.3.2", prefix="b", hu=thin, step_mm=3.0)
    write_series(tmp_path / "dicom", uid="1.2.3.3", prefix="c", hu=partial, step_mm=1.0)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert np.asanyarray(load(tmp_path / "out").dataobj).max() == 1
    assert reasons(tmp_path / "out") == {"used": 30, "not_chosen": 50}


def test_same_input_same_bytes_and_stale_volumes_go(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "dicom")
    write_series(tmp_path / "dicom", uid="2.1", study="2", prefix="b")
    digests = []
    for _ in range(2):
        convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
        files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert digests[0] == digests[1]
    for path in (tmp_path / "dicom").glob("b*"):
        path.unlink()
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    names = sorted(path.suffix for path in (tmp_path / "out/nifti").iterdir())
    assert names == [".gz", ".json"]


def test_without_data_it_says_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(ValueError, match=r"make demo.*Your own data"):
            convert_dicom(folder, tmp_path / "out", PARAMS)


def test_nothing_usable_is_an_error_with_reasons(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "dicom", hu=np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match=r"no usable CT volume under .*too_few_slices"):
        convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"too_few_slices": 2}


def test_files_without_preamble_are_read(tmp_path: Path, write_series: Write) -> None:
    path = write_series(tmp_path)[0]
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[132:])
    assert read_header(bare).position == read_header(path).position


def test_random_bytes_are_not_dicom(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 131, 133, 5000):
        (tmp_path / "x").write_bytes(rng.bytes(size))
        with pytest.raises(Refused) as caught:
            read_header(tmp_path / "x")
        assert caught.value.reason is Reason.NOT_DICOM


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless"])
def test_compressed_slices_decode_to_the_same_volume(
    syntax: str, tmp_path: Path, write_series: Write
) -> None:
    import pydicom
    from pydicom import uid

    files = write_series(
        tmp_path / "dicom", hu=np.random.default_rng(1).integers(0, 99, (8, 64, 64))
    )
    plain, _ = read_volume(arrange([read_header(path) for path in files], PARAMS), PARAMS)
    for path in files:
        data = pydicom.dcmread(path)
        data.compress(getattr(uid, syntax))
        data.save_as(path)
    headers = [read_header(path) for path in files]
    assert all(header.complete for header in headers)
    np.testing.assert_array_equal(read_volume(arrange(headers, PARAMS), PARAMS)[0], plain)
    files[0].write_bytes(files[0].read_bytes()[:-20])
    assert not read_header(files[0]).complete


def test_malformed_values_are_not_quoted_in_warnings(
    tmp_path: Path, write_series: Write, recwarn: pytest.WarningsRecorder
) -> None:
    for path in write_series(tmp_path / "dicom", study="1.2.3.777"):
        path.write_bytes(path.read_bytes().replace(b"1.2.3.777", b"1.2.SECRT"))
    recwarn.clear()
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert not [warning for warning in recwarn if "SECRT" in str(warning.message)]
