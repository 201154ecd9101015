"""Resampling: geometry by hand-worked numbers, orientation by landmarks, parity, memory."""

import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from mg3d.data.nifti import load_nifti
from mg3d.data.resample import _box_average, resample, resample_to_contract, xyz_to_dhw
from mg3d.params import VolumeContract

CONTRACT = VolumeContract(spacing_mm=(2.0, 2.0, 2.0), shape_voxels=(64, 64, 64))


def turned(degrees: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Affine to RAS mm: axes turned about x, scaled, origin in no particular place."""
    a = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    affine[:3, :3] *= spacing_mm
    affine[:3, 3] = (7.0, -3.0, 100.0)
    return affine


@pytest.mark.parametrize(
    ("spacing_mm", "flip"),
    [((2.0, 2.0, 2.0), False), ((1.0, 1.0, 4.0), False), ((4.0, 1.0, 2.0), True)],
)
def test_a_cube_keeps_its_millimetres(spacing_mm: tuple[float, float, float], flip: bool) -> None:
    """A cube of 32 mm is 16 voxels wide at 2 mm: 4096 voxels, whatever the grid it came on."""
    shape = tuple(round(96 / spacing) for spacing in spacing_mm)
    size = [round(32 / spacing) for spacing in spacing_mm]
    start = [(total - inner) // 2 for total, inner in zip(shape, size, strict=True)]
    volume = np.full(shape, -1000, np.int16)
    cube = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    volume[cube] = 1000
    affine = np.diag([*spacing_mm, 1.0])
    if flip:  # stored with x towards the left
        affine[0] *= -1
        affine[0, 3] = 50.0
    packed = resample_to_contract(volume, affine, CONTRACT)
    assert packed.shape == (64, 64, 64)
    assert packed.dtype == np.int16
    assert np.count_nonzero(packed > 0) == 16**3
    inside = np.argwhere(packed > 0)
    assert inside.min(axis=0).tolist() == [24, 24, 24]
    assert inside.max(axis=0).tolist() == [39, 39, 39]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "AIL", "PRS"])
def test_landmarks_end_up_right_front_and_head(codes: str, tmp_path: Path) -> None:
    """One bright blob towards each side, on a file stored in any orientation."""
    ras = np.full((48, 48, 48), -1000, np.int16)
    ras[36:44, 22:26, 22:26] = 300  # right: high x
    ras[22:26, 36:44, 22:26] = 600  # anterior: high y
    ras[22:26, 22:26, 36:44] = 900  # superior: high z
    image = nibabel.Nifti1Image(ras, np.diag([2.0, 2.0, 2.0, 1.0]))
    wanted = nibabel.orientations.axcodes2ornt(codes)
    image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), wanted)
    ).to_filename(tmp_path / "x.nii.gz")
    volume, affine = load_nifti(tmp_path / "x.nii.gz")
    assert nibabel.aff2axcodes(affine) == ("R", "A", "S")
    packed = resample_to_contract(volume, affine, CONTRACT)
    centre = {hu: np.argwhere(packed == hu).mean(axis=0) for hu in (300, 600, 900)}
    # By hand: the 48 voxels lie at 8..55 of 64, so 36..43 becomes 44..51, mean 47.5; 22..25: 31.5.
    np.testing.assert_allclose(centre[300], (31.5, 31.5, 47.5))  # (D, H, W): W grows to the right
    np.testing.assert_allclose(centre[600], (31.5, 47.5, 31.5))  # H grows to the front
    np.testing.assert_allclose(centre[900], (47.5, 31.5, 31.5))  # D grows to the head


@pytest.mark.parametrize("degrees", [0.0, 17.0])
def test_agrees_with_simpleitk(degrees: float) -> None:
    """Linear resampling on a finer grid (no averaging), also of an oblique volume."""
    rng = np.random.default_rng(0)
    volume = rng.integers(-900, 900, (20, 24, 18)).astype(np.int16)
    affine = turned(degrees, (3.0, 2.8, 3.2))
    ours = resample_to_contract(volume, affine, CONTRACT)

    image = SimpleITK.GetImageFromArray(volume.transpose(2, 1, 0).astype(np.float32))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    centre = affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2) + affine[:3, 3]
    grid = SimpleITK.ResampleImageFilter()
    grid.SetSize((64, 64, 64))
    grid.SetOutputSpacing((2.0, 2.0, 2.0))
    grid.SetOutputOrigin((centre - 2.0 * 63 / 2).tolist())
    grid.SetInterpolator(SimpleITK.sitkLinear)
    grid.SetDefaultPixelValue(-5000)
    theirs = SimpleITK.GetArrayFromImage(grid.Execute(image))
    # ITK clamps the half voxel at the border, we fade it out: compare only inside.
    mask = np.zeros(volume.shape, np.float32)
    mask[1:-1, 1:-1, 1:-1] = 1
    inner = SimpleITK.GetImageFromArray(mask.transpose(2, 1, 0))
    inner.CopyInformation(image)
    grid.SetDefaultPixelValue(0)
    same = SimpleITK.GetArrayFromImage(grid.Execute(inner)) == 1
    assert same.mean() > 0.05
    assert np.abs(ours - theirs)[same].max() <= 0.51  # rounding to integers


def test_downsampling_averages_instead_of_skipping() -> None:
    """A checkerboard of 1 mm turns into its mean at 2 mm; plain linear sampling would alias."""
    index = np.indices((96, 96, 96)).sum(axis=0)
    volume = np.where(index % 2, 400, 0).astype(np.int16)
    packed = resample_to_contract(volume, np.diag([1.0, 1, 1, 1]), CONTRACT)
    assert np.unique(packed[20:44, 20:44, 20:44]).tolist() == [200]


def test_outside_and_below_the_window_is_the_windows_minimum() -> None:
    volume = np.full((16, 16, 16), -3024, np.int16)
    volume[8:] = 0
    packed = resample_to_contract(volume, np.diag([2.0, 2, 2, 1]), CONTRACT)
    assert packed.min() == -1000
    assert packed[0, 0, 0] == -1000
    assert packed[32, 32, 31] == -1000  # the padding itself
    assert packed[32, 32, 32] == 0


def test_odd_counts_keep_the_centre() -> None:
    """7 voxels of 1 mm in boxes of 2: the border is repeated, the middle stays in the middle."""
    volume = np.zeros((7, 64, 64), np.int16)
    volume[3] = 900
    affine = np.diag([1.0, 2.0, 2.0, 1.0])
    packed = resample_to_contract(volume, affine, CONTRACT)
    # Voxel 3 is the centre, x = 0; boxes stand at -2.5 (0,1), -0.5 (2,3), 1.5, 3.5: 450 at -0.5.
    # Samples at -1 and 1: 450 * 0.75 and 450 * 0.25, rounded to even.
    assert packed[32, 32, 31:33].tolist() == [338, 112]


def test_axis_swap_is_its_own_inverse() -> None:
    array = np.zeros((2, 3, 4))
    assert xyz_to_dhw(array).shape == (4, 3, 2)
    assert xyz_to_dhw(xyz_to_dhw(array)).shape == (2, 3, 4)


def test_a_sheared_volume_is_straightened() -> None:
    """Gantry tilt: each 2 mm slice lies 1 mm further to the front. A cube of 32 mm stays a cube."""
    volume = np.full((48, 64, 48), -1000, np.int16)
    for height in range(16, 32):  # the cube of the world, seen from the tilted grid
        start = 40 - height / 2  # voxels of 2 mm; where the cube begins in this slice
        index = np.arange(64)
        first, last = np.maximum(index, start), np.minimum(index, start + 15)
        share = np.clip(last - first + 1, 0, 1)
        volume[16:32, :, height] = np.rint(-1000 + 2000 * share)
    affine = np.diag([2.0, 2, 2, 1])
    affine[1, 2] = 1.0
    packed = resample_to_contract(volume, affine, CONTRACT)
    inside = np.argwhere(packed >= 0)
    assert (np.ptp(inside, axis=0) + 1).tolist() == [16, 16, 16]
    assert len(inside) == 16**3


@pytest.mark.parametrize("seed", range(6))
def test_box_means_are_those_of_numpy_whatever_the_memory_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(4, 14, 3)
    boxes = rng.integers(1, 5, 3).tolist()
    volume = rng.integers(-2000, 2000, shape).astype([np.int16, np.float32][seed % 2])
    missing = [(0, int(-size % box)) for size, box in zip(shape, boxes, strict=True)]
    whole = np.maximum(np.pad(volume, missing, mode="edge"), -1000).astype(float)
    x, y, z = (size // box for size, box in zip(whole.shape, boxes, strict=True))
    a, b, c = boxes
    expected = whole.reshape(x, a, y, b, z, c).mean(axis=(1, 3, 5))
    order = rng.permutation(3)
    views = [
        volume,
        np.asfortranarray(volume),
        np.ascontiguousarray(volume[::-1, :, ::-1])[::-1, :, ::-1],
        np.ascontiguousarray(volume.transpose(order)).transpose(np.argsort(order)),
    ]
    for view in views:
        averaged = _box_average(view, boxes, -1000)
        assert averaged.dtype == np.float32
        assert averaged.flags.c_contiguous
        np.testing.assert_allclose(averaged, expected, rtol=1e-6, atol=1e-3)


def test_memory_beside_the_volume_is_that_of_the_result() -> None:
    """192x192x128 int16 (9 MiB) to 64 voxels a side: no copy of the volume in any type."""
    volume = np.zeros((192, 192, 128), np.int16, order="F")
    tracemalloc.start()
    resample_to_contract(volume, np.diag([0.7, 0.7, 1.0, 1]), CONTRACT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    result = 64**3 * 2
    averaged = 64**3 * 4
    plane = 192 * 192 * 4
    assert peak <= 2 * averaged + 4 * result + 6 * plane
    assert peak < volume.nbytes / 2


def test_the_same_voxels_as_monai() -> None:
    """MONAI's Spacing has no averaging, and repeats the border where we fade out: inside, on its
    grid and with boxes of one, the two differ by our rounding to integers."""
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms import Spacing

    rng = np.random.default_rng(0)
    volume = rng.integers(-1000, 1000, (30, 26, 20), np.int16)
    affine = np.diag([0.7, 0.8, 1.5, 1.0])
    affine[:3, 3] = (-20.0, 35.0, 110.0)
    spacing = Spacing(pixdim=CONTRACT.spacing_mm[::-1], mode="bilinear")
    theirs = spacing(MetaTensor(volume[None].astype(np.float32), affine=affine))
    shape = tuple(theirs.shape[:0:-1])
    ours = resample(volume, affine, np.asarray(theirs.affine), shape, -1000, [1, 1, 1])
    apart = np.abs(ours - theirs[0].numpy().transpose(2, 1, 0))[1:-1, 1:-1, 1:-1]
    assert apart.size > 500
    assert apart.max() <= 0.501
