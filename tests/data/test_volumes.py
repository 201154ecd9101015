"""pack_volumes: geometry by hand-worked numbers, orientation by landmarks, parity, bad input."""

import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK

from mg3d.data.volumes import (
    WrongShape,
    apply_window,
    load_nifti,
    pack_volumes,
    resample_to_contract,
    xyz_to_dhw,
)
from mg3d.params import PackVolumes, VolumeContract

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


def test_window() -> None:
    hu = np.array([-2000, -1000, 0, 250, 500, 3000], np.int16)
    windowed = apply_window(hu, (-1000, 500))
    assert windowed.dtype == np.float32
    np.testing.assert_allclose(windowed, [0, 0, 2 / 3, 1250 / 1500, 1, 1], rtol=1e-6)


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine).to_filename(path)


def test_load_nifti_applies_the_files_scaling(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    image.to_filename(tmp_path / "x.nii")
    data, _ = load_nifti(tmp_path / "x.nii")
    assert data.dtype == np.float32
    save(tmp_path / "y.nii", np.zeros((2, 3, 4, 1), np.int16))
    assert load_nifti(tmp_path / "y.nii")[0].shape == (2, 3, 4)
    save(tmp_path / "z.nii", np.zeros((2, 3, 4, 2), np.int16))
    with pytest.raises(WrongShape, match="three axes"):
        load_nifti(tmp_path / "z.nii")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_bad_volume_ends_in_the_ledger(num_workers: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = rng.integers(-1000, 1000, (12, 12, 12)).astype(np.int16)
    broken = good.astype(np.float32)
    broken[3, 3, 3] = np.nan
    volumes = {
        "good": good,
        "float": good.astype(np.float32),
        "time": np.zeros((4, 4, 4, 3), np.int16),
        "flat": good[:, :, :1],
        "nan": broken,
        "constant": np.full((5, 5, 5), -1000, np.int16),
        "truncated": good,
    }
    for name, data in volumes.items():
        save(tmp_path / f"in/nifti/{name}.nii.gz", data)
    path = tmp_path / "in/nifti/truncated.nii.gz"
    path.write_bytes(path.read_bytes()[:-300])
    (tmp_path / "in/nifti/text.nii.gz").write_text("no image")
    names = [*volumes, "text", "absent"]
    pd.DataFrame({"study_id": names, "nifti": [f"{n}.nii.gz" for n in names]}).to_parquet(
        tmp_path / "in/manifest.parquet"
    )
    stale = tmp_path / "out/volumes/stale.npy"
    stale.parent.mkdir(parents=True)
    stale.touch()
    params = PackVolumes(num_workers=num_workers)
    summary = pack_volumes(tmp_path / "in", tmp_path / "out", params, CONTRACT).summary()
    assert (summary["inputs"], summary["used"]) == (9, 2)
    assert summary["reasons"] == {"constant": 1, "not_finite": 1, "unreadable": 3, "wrong_shape": 2}

    table = pd.read_parquet(tmp_path / "out/manifest.parquet")
    assert table["study_id"].tolist() == ["float", "good"]
    assert set(table["contract_digest"]) == {CONTRACT.digest()}
    assert {path.name for path in stale.parent.iterdir()} == {"float.npy", "good.npy"}
    for row in table.itertuples():
        packed = tmp_path / "out/volumes" / row.volume
        assert hashlib.sha256(packed.read_bytes()).hexdigest() == row.volume_sha256
        mapped = np.load(packed, mmap_mode="r", allow_pickle=False)
        assert isinstance(mapped, np.memmap)
        assert (mapped.shape, mapped.dtype) == ((64, 64, 64), np.int16)
        assert mapped.flags.c_contiguous


def test_mistakes_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run convert_dicom first"):
        pack_volumes(tmp_path, tmp_path / "out", PackVolumes(), CONTRACT)
    pd.DataFrame({"study_id": ["a"], "nifti": ["a.nii.gz"]}).to_parquet(
        tmp_path / "manifest.parquet"
    )
    with pytest.raises(ValueError, match=r"could be packed.*unreadable"):
        pack_volumes(tmp_path, tmp_path / "out", PackVolumes(), CONTRACT)
