"""`mg3d predict`: a study in, files out, with the geometry of the study; or a typed refusal."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from mg3d.downstream import DOWNSTREAM
from mg3d.finetuning.segmentation import Segmentation
from mg3d.inference.dicom_seg import CODES, write_dicom_seg
from mg3d.registry.prediction import predict
from mg3d.registry.registration import register

from .conftest import World


@pytest.fixture(scope="module", autouse=True)
def _registered(world: World) -> None:
    register(world.run, world.params)


@pytest.fixture(scope="module")
def series(here: Path) -> Path:
    """A DICOM folder of a chest, slices of 4 mm from the feet up."""
    from data.conftest import write_ct_series
    from downstream.layouts import chest_hu

    hu = chest_hu((40, 36, 24), lesion=True)[::-1, ::-1].transpose(2, 1, 0)  # LPS, z, y, x
    write_ct_series(
        here / "dicom", hu=hu, spacing=(5.0, 6.0), step_mm=4.0, seed=1,
        FrameOfReferenceUID="1.2.3.9", StudyDate="20200101", StudyTime="120000",
        PatientBirthDate="", PatientSex="", ReferringPhysicianName="", StudyID="",
    )  # fmt: skip
    return here / "dicom"


def test_findings_are_files_with_the_models_name(chest: Path, tmp_path: Path) -> None:
    (file,) = predict("models:/mg3d-stoic2021@candidate", chest, tmp_path, None, [])
    answer = json.loads(file.read_text())
    assert answer["model"]["uri"].startswith("models:/mg3d-stoic2021/")
    assert len(answer["model"]["contract"]) == 16
    assert [finding["name"] for finding in answer["findings"]] == ["covid", "severe"]
    assert {path.name for path in file.parent.iterdir()} == {
        "answer.json", "findings.csv", "figure.png",
    }  # fmt: skip
    lines = (file.parent / "findings.csv").read_text().splitlines()
    assert lines[0] == "finding,probability,threshold,called"
    assert len(lines) == 3
    assert "chest" not in json.dumps(answer)  # the file's name may identify


def test_a_mask_of_a_nifti_file_lies_on_its_voxels(chest: Path, tmp_path: Path) -> None:
    (file,) = predict("models:/mg3d-covid19_20@candidate", chest, tmp_path, None, [])
    mask, image = nibabel.load(file.parent / "mask.nii.gz"), nibabel.load(chest)
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine)
    assert nibabel.aff2axcodes(mask.affine) == ("L", "P", "S")
    assert json.loads(file.read_text())["dicom_seg"] == "none: the study is no DICOM series"


def test_a_mask_of_a_dicom_series_is_a_dicom_seg_with_its_geometry(
    series: Path, tmp_path: Path
) -> None:
    import highdicom

    (file,) = predict("models:/mg3d-covid19_20@candidate", series, tmp_path, None, [])
    nifti = nibabel.load(file.parent / "mask.nii.gz")
    seg = highdicom.seg.segread(file.parent / "mask.dcm")
    source = pydicom.dcmread(next(series.iterdir()))
    assert seg.SOPClassUID.name == "Segmentation Storage"
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert seg.StudyInstanceUID == source.StudyInstanceUID
    assert seg.get_segment_description(1).segment_label == "lesion"
    volume = seg.get_volume(combine_segments=True)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    # Every voxel of the one lies in the other at the same millimetres, with the same value.
    mask = np.asarray(nifti.dataobj)
    assert 0 < mask.mean() < 1  # a mask that says something
    index = np.argwhere(np.ones_like(mask))
    mm = index @ nifti.affine[:3, :3].T + nifti.affine[:3, 3]
    there = np.linalg.inv(to_ras @ volume.affine)
    seen = np.rint(mm @ there[:3, :3].T + there[:3, 3]).astype(int)
    np.testing.assert_array_equal(volume.array[tuple(seen.T)], mask[tuple(index.T)])
    assert volume.spatial_shape == (24, 36, 40)
    # And the series' own geometry: the first slice's corner, spacing, step.
    corners = np.array([volume.affine @ [at, 0, 0, 1] for at in (0, 23)])[:, :3]
    low, high = sorted(corners.tolist(), key=lambda corner: corner[2])
    np.testing.assert_allclose(low, [-10, 20, -30], atol=1e-4)
    np.testing.assert_allclose(high, [-10, 20, -30 + 23 * 4], atol=1e-4)
    np.testing.assert_allclose(volume.spacing, (4.0, 5.0, 6.0), atol=1e-4)


def test_segments_are_coded_as_what_they_are(series: Path, tmp_path: Path) -> None:
    import highdicom

    mask = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    classes = ("rv", "tumour", "lesion")
    files = sorted(series.iterdir())[:1]
    write_dicom_seg(tmp_path / "mask.dcm", mask, np.eye(4), classes, files, "test")
    seg = highdicom.seg.segread(tmp_path / "mask.dcm")
    segments = [seg.get_segment_description(number) for number in (1, 2, 3)]
    assert [segment.segmented_property_type.meaning for segment in segments] == [
        *("Right ventricle", "Neoplasm", "Lesion"),
    ]
    kinds = [task.kind for task in DOWNSTREAM.values() if isinstance(task.kind, Segmentation)]
    assert {name for kind in kinds for name in kind.classes.names} == {*CODES, "lesion"}


def test_towers_look_for_what_is_named(chest: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass --finding NAME"):
        predict("models:/mg3d@candidate", chest, tmp_path, None, [])
    (file,) = predict("models:/mg3d@candidate", chest, tmp_path, None, ["Pleural effusion"])
    assert json.loads(file.read_text())["findings"][0]["name"] == "Pleural effusion"
    with pytest.raises(ValueError, match="use `mg3d embed`"):
        predict("models:/mg3d-encoder@candidate", chest, tmp_path, None, [])


def test_what_is_no_chest_or_has_no_geometry_is_refused(
    chest: Path, abdomen: Path, series: Path, tmp_path: Path
) -> None:
    uri = "models:/mg3d-stoic2021@candidate"
    with pytest.raises(ValueError, match="is refused: no_chest: 0 mm of lung, not 60"):
        predict(uri, abdomen, tmp_path, None, [])
    image = nibabel.load(chest)
    blank = nibabel.Nifti1Image(np.asarray(image.dataobj), None)
    nibabel.save(blank, tmp_path / "blank.nii.gz")
    with pytest.raises(ValueError, match="is refused: no_affine"):
        predict(uri, tmp_path / "blank.nii.gz", tmp_path, None, [])
    folder = tmp_path / "without"
    folder.mkdir()
    for path in series.iterdir():
        data = pydicom.dcmread(path)
        del data.PixelSpacing
        data.save_as(folder / path.name)
    with pytest.raises(ValueError, match=r"is refused: missing_tag: .*PixelSpacing"):
        predict(uri, folder, tmp_path, None, [])


def test_another_contract_in_the_registry_than_in_the_files_is_refused(
    chest: Path, tmp_path: Path
) -> None:
    from mg3d import tracking

    store = tracking.client()
    version = store.get_model_version_by_alias("mg3d-covid19_20", "candidate")
    store.set_model_version_tag(version.name, version.version, "contract", "0" * 16)
    try:
        with pytest.raises(ValueError, match="in the registry and of"):
            predict("models:/mg3d-covid19_20@candidate", chest, tmp_path, None, [])
    finally:
        contract = version.tags["contract"]
        store.set_model_version_tag(version.name, version.version, "contract", contract)
