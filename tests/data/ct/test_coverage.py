"""A chest has lung from bottom to top; a head and an abdomen do not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.converters import convert_dicom, reasons
from mg3d.data.ct.coverage import lung_mm
from mg3d.params import ConvertVolumes, DicomVolumes

Write = Callable[..., list[Path]]


def trunk(num_slices: int = 20, size: int = 64) -> np.ndarray:
    """A body of 40 HU in air with air between arm and trunk [X, Y, Z]."""
    x, y = np.indices((size, size)) - size / 2
    plane = np.where((x / 24) ** 2 + (y / 18) ** 2 < 1, 40, -1000)
    arm = (x - 29) ** 2 + y**2 < 9
    plane[arm] = 40
    return np.repeat(plane[:, :, None], num_slices, axis=2)


def with_holes(volume: np.ndarray, slices: slice, hu: int, radius: int) -> np.ndarray:
    """Two round regions of ``hu`` in ``slices``."""
    x, y = np.indices(volume.shape[:2]) - volume.shape[0] / 2
    for centre in (-11, 11):
        volume[(x - centre) ** 2 + y**2 < radius**2, slices] = hu
    return volume


CHEST = with_holes(trunk(), slice(5, 17), -850, 9)
HEAD = with_holes(trunk(), slice(5, 8), -900, 3)  # mastoids
ABDOMEN = with_holes(with_holes(trunk(), slice(0, 14), -1000, 9), slice(18, 20), -850, 9)


def test_lung_is_counted_in_slices_of_their_own_thickness() -> None:
    """Twelve slices of 10 mm; a head none, an abdomen its two of the lung bases, not the gas."""
    assert [lung_mm(volume, 10.0) for volume in (CHEST, HEAD, ABDOMEN)] == [120, 0, 20]
    noise = np.random.default_rng(0).normal(0, 40, CHEST.shape)
    assert lung_mm(CHEST + noise, 2.5) == 30


def test_large_slices_are_thinned_out() -> None:
    large = np.repeat(np.repeat(CHEST, 8, axis=0), 8, axis=1)
    assert lung_mm(large, 10.0) == 120


@pytest.mark.parametrize("gate", [60.0, None])
def test_a_head_and_an_abdomen_are_no_chest(
    gate: float | None, tmp_path: Path, write_series: Write
) -> None:
    for number, volume in enumerate((CHEST, HEAD, ABDOMEN)):
        uid = f"4.{number}"
        # LPS rows run to the back, columns to the left: turned twice on the way to RAS
        hu = volume[::-1, ::-1].transpose(2, 1, 0)
        names = {"uid": uid, "study": uid, "patient": uid, "prefix": uid}
        write_series(tmp_path / "dicom", hu=hu, step_mm=10.0, **names)
    gated = ConvertVolumes(num_workers=1, min_lung_mm=gate)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", DicomVolumes(), gated)
    expected = {"used": 20, "no_chest": 40} if gate else {"used": 60}
    assert reasons(tmp_path / "out") == expected


def test_the_abdomen_of_a_study_gives_way_to_its_chest(tmp_path: Path, write_series: Write) -> None:
    """The longer series comes first by coverage and is refused by its voxels."""
    longer = np.concatenate([ABDOMEN, ABDOMEN], axis=2)
    for number, volume in enumerate((longer, CHEST)):
        uid, hu = f"4.{number}", volume.transpose(2, 1, 0)
        write_series(tmp_path / "dicom", hu=hu, step_mm=5.0, uid=uid, prefix=uid)
    convert_dicom(
        *(tmp_path / "dicom", tmp_path / "out", DicomVolumes()),
        ConvertVolumes(num_workers=1, min_lung_mm=50.0),
    )
    assert reasons(tmp_path / "out") == {"used": 20, "no_chest": 40}
