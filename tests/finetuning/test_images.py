from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from mg3d.data.ct.refused import Refused
from mg3d.finetuning.images import (
    load_image,
    load_slices,
    packed_cases,
    read_case,
)
from mg3d.finetuning.task import Case
from mg3d.ledger import Ledger, Reason
from mg3d.params import VolumeContract

CONTRACT = VolumeContract(spacing_mm=(6.0, 6.0, 6.0), shape_voxels=(32, 32, 32))


def test_slices_are_turned_to_the_contract(tmp_path: Path) -> None:
    for number in range(1, 33):  # the first is the uppermost, bright in front and on the right
        pixels = np.full((32, 32), 4 * number, np.uint8)
        pixels[:8] += 60
        pixels[:, :8] += 60
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg", quality=100)
    volume = load_slices(tmp_path, CONTRACT)
    assert volume.shape == (32, 32, 32)
    assert volume.dtype == np.int16
    gray = (volume.astype(float) + 1000) * 255 / 2000
    assert gray[0, 15, 15] == pytest.approx(128, abs=4)  # feet: slice 32
    assert gray[31, 15, 15] == pytest.approx(4, abs=4)  # head: slice 1
    assert gray[0, 30, 15] - gray[0, 15, 15] == pytest.approx(60, abs=6)  # front
    assert gray[0, 15, 30] - gray[0, 15, 15] == pytest.approx(60, abs=6)  # right


def test_slices_of_two_sizes_or_none(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no JPG or PNG slices"):
        load_slices(tmp_path, CONTRACT)
    for number, size in enumerate((8, 9)):
        Image.fromarray(np.zeros((size, size), np.uint8)).save(tmp_path / f"{number}.jpg")
    with pytest.raises(Refused, match="slices of 2 sizes"):
        load_slices(tmp_path, CONTRACT)


def test_png_and_jpg_are_one_stack_and_deep_pixels_are_refused(tmp_path: Path) -> None:
    for number in range(32):
        pixels = np.full((32, 32), 4 * number, np.uint8)
        suffix = "png" if number % 2 else "jpg"
        Image.fromarray(pixels).save(tmp_path / f"{number:04d}.{suffix}")
    (tmp_path / "._0003.png").write_bytes(b"an archive's twin")
    gray = (load_slices(tmp_path, CONTRACT)[::-1, 15, 15].astype(float) + 1000) * 255 / 2000
    assert gray == pytest.approx(4 * np.arange(32), abs=2)
    Image.fromarray(np.full((32, 32), 300, np.uint16)).save(tmp_path / "0032.png")
    with pytest.raises(Refused, match="undecodable: a slice of mode I;16, not 8-bit"):
        load_slices(tmp_path, CONTRACT)


def test_mhd_with_flipped_directions(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-12.0, 30.0, -400.0))
    image.SetDirection((-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mhd"))
    _, affine = load_image(Case("c", "p", tmp_path / "a.mhd"))
    point = (-14.0, 28.5, -394.0)
    index = np.linalg.inv(affine) @ [-point[0], -point[1], point[2], 1]
    expected = image.TransformPhysicalPointToContinuousIndex(point)
    assert index[:3] == pytest.approx(expected)


def test_mha_has_the_geometry_that_simpleitk_says(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    image = SimpleITK.GetImageFromArray(generator.integers(-1000, 900, (4, 5, 6)).astype(np.int16))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-12.0, 30.0, -400.0))
    image.SetDirection((0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    volume, affine = load_image(Case("c", "p", tmp_path / "a.mha"))
    assert volume.shape == (6, 5, 4)
    for index in ((0, 0, 0), (5, 0, 0), (2, 3, 1)):
        left, back, up = image.TransformIndexToPhysicalPoint(index)
        assert affine @ [*index, 1] == pytest.approx([-left, -back, up, 1])
        assert volume[index] == image[index]


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'\.npz'"):
        load_image(Case("c", "p", tmp_path / "a.npz"))


def chest() -> np.ndarray:
    volume = np.full((16, 16, 16), -1000, np.float32)
    volume[4:12, 4:12] = 30
    return volume


def test_a_broken_file_stops_nobody(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(chest())
    image.SetSpacing((10, 10, 10))
    SimpleITK.WriteImage(image, str(tmp_path / "good.mha"))
    (tmp_path / "bad.mha").write_bytes((tmp_path / "good.mha").read_bytes()[:500])
    cases = [Case(name, name, tmp_path / f"{name}.mha") for name in ("bad", "good", "absent")]
    ledger = Ledger("task", "case", ["bad", "good", "absent"])
    split = {"train": cases[:2], "test": cases[2:]}
    with packed_cases(split, CONTRACT, ledger) as volumes:
        assert [case.case_id for case in split["train"]] == ["good"]
        assert split["test"] == []
        batch = volumes.batch(split["train"])
        assert batch.shape == (1, 1, 32, 32, 32)
        assert 0 <= float(batch.min()) < float(batch.max()) <= 1
        assert volumes.slices(split["train"][0], 3).shape == (3, 32, 32)
        folder = volumes.folder
    assert not folder.exists()
    assert {e.input_id: e.reason for e in ledger.entries} == {
        "bad": Reason.UNREADABLE, "absent": Reason.UNREADABLE,
    }  # fmt: skip


def test_why_a_nifti_is_refused_reaches_the_ledger(tmp_path: Path) -> None:
    """Two forms that disagree: a case as good as lost, and the ledger says to what."""
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.set_qform(np.diag([-1.0, 1, 1, 1]), code=1)
    image.to_filename(tmp_path / "x.nii.gz")
    ledger = Ledger("task", "case", ["x"])
    assert read_case(Case("x", "x", tmp_path / "x.nii.gz"), CONTRACT, ledger) is None
    (entry,) = ledger.entries
    assert entry.reason == Reason.AFFINES_DISAGREE
