"""pack_volumes: the window, every bad input in the ledger, kill and resume."""

import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from data.killing import kill_stage
from mg3d.data.ct.nifti import write_nifti
from mg3d.data.volumes import apply_window, pack_volumes
from mg3d.params import PackVolumes, VolumeContract

CONTRACT = VolumeContract(spacing_mm=(2.0, 2.0, 2.0), shape_voxels=(64, 64, 64))


def write_manifest(folder: Path, files: dict[str, str], spacing_mm: float = 1.0) -> None:
    """What convert_volumes tells of its NIfTI files: study -> file."""
    table = pd.DataFrame({"study_id": list(files), "nifti": list(files.values())})
    table.assign(spacing_x_mm=spacing_mm).to_parquet(folder / "manifest.parquet")


def test_window() -> None:
    hu = np.array([-2000, -1000, 0, 250, 500, 3000], np.int16)
    windowed = apply_window(hu, (-1000, 500))
    assert windowed.dtype == np.float32
    np.testing.assert_allclose(windowed, [0, 0, 2 / 3, 1250 / 1500, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("window_hu", [(-1000, 1000), (-175, 250), (-32768, 32767), (0, 1)])
def test_the_window_of_every_int16(window_hu: tuple[int, int], dtype: type) -> None:
    hu = np.arange(-32768, 32768).astype(dtype)
    low, high = window_hu
    expected = (np.clip(hu.astype(np.float64), low, high) - low) / (high - low)
    windowed = apply_window(hu, window_hu)
    assert windowed.dtype == np.float32
    np.testing.assert_allclose(windowed, expected, rtol=1.3e-7)
    assert windowed.max() <= 1
    np.testing.assert_array_equal(hu, np.arange(-32768, 32768))  # the input is not written to


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine).to_filename(path)


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
    write_manifest(tmp_path / "in", {n: f"{n}.nii.gz" for n in names})
    stale = tmp_path / "out/volumes/stale.npy"
    stale.parent.mkdir(parents=True)
    stale.touch()
    params = PackVolumes(num_workers=num_workers)
    summary = pack_volumes(tmp_path / "in", tmp_path / "out", params, CONTRACT).summary()
    assert (summary["inputs"], summary["used"]) == (9, 2)
    assert summary["reasons"] == {
        "constant": 1,
        "not_finite": 1,
        "truncated": 1,
        "unreadable": 2,
        "wrong_shape": 2,
    }

    table = pd.read_parquet(tmp_path / "out/manifest.parquet")
    assert table["study_id"].tolist() == ["float", "good"]
    assert set(table["contract_digest"]) == {CONTRACT.digest()}
    assert {path.name for path in stale.parent.iterdir()} == set(table["volume"])
    for row in table.itertuples():
        assert row.volume.startswith(f"{row.study_id}-")
        packed = tmp_path / "out/volumes" / row.volume
        assert hashlib.sha256(packed.read_bytes()).hexdigest() == row.volume_sha256
        mapped = np.load(packed, mmap_mode="r", allow_pickle=False)
        assert isinstance(mapped, np.memmap)
        assert (mapped.shape, mapped.dtype) == ((64, 64, 64), np.int16)
        assert mapped.flags.c_contiguous


def test_mistakes_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run convert_volumes first"):
        pack_volumes(tmp_path, tmp_path / "out", PackVolumes(), CONTRACT)
    write_manifest(tmp_path, {"a": "a.nii.gz"})
    with pytest.raises(ValueError, match=r"could be packed.*unreadable"):
        pack_volumes(tmp_path, tmp_path / "out", PackVolumes(), CONTRACT)


def packed_bytes(out: Path) -> dict[str, bytes]:
    """Every file that the stage wrote, by name."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


PACK = """
import sys
from pathlib import Path
from mg3d.data.volumes import pack_volumes
from mg3d.params import PackVolumes, VolumeContract
contract = VolumeContract(spacing_mm=(2.0, 2.0, 2.0), shape_voxels=(64, 64, 64))
pack_volumes(Path(sys.argv[1]), Path(sys.argv[2]), PackVolumes(num_workers=2), contract)
"""


def test_killed_and_started_again_packs_the_remainder_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"study-{number:02d}" for number in range(24)]
    for name in names:
        save(tmp_path / f"in/nifti/{name}.nii.gz", rng.integers(-900, 900, (64, 64, 64), np.int16))
    save(tmp_path / "in/nifti/flat.nii.gz", np.zeros((8, 8, 8), np.int16))
    names.append("flat")
    write_manifest(tmp_path / "in", {n: f"{n}.nii.gz" for n in names})
    out = tmp_path / "out"
    arguments = [str(tmp_path / "in"), str(out)]
    kill_stage(PACK, arguments, lambda: len(list(out.glob("volumes/study*.npy"))), at_least=4)
    done = {path: path.stat().st_mtime_ns for path in out.glob("volumes/study*.npy")}
    assert 4 <= len(done) < 24
    (out / "volumes/.study-99.npy.x1y2.npy").touch()  # killed while it was writing

    pack_volumes(tmp_path / "in", out, PackVolumes(num_workers=1), CONTRACT)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    whole = tmp_path / "whole"
    pack_volumes(tmp_path / "in", whole, PackVolumes(num_workers=1), CONTRACT)
    assert packed_bytes(out) == packed_bytes(whole)


def test_a_packed_file_is_of_its_input_its_contract_and_its_setting(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source, out = tmp_path / "in", tmp_path / "out"
    names = ["a", "b"]
    for name in names:
        save(source / f"nifti/{name}.nii.gz", rng.integers(-900, 900, (8, 8, 8), np.int16))
    write_manifest(source, {n: f"{n}.nii.gz" for n in names})

    def files() -> tuple[str, ...]:
        table = pd.read_parquet(out / "manifest.parquet")
        assert {path.name for path in (out / "volumes").iterdir()} == set(table["volume"])
        return tuple(table["volume"])

    pack_volumes(source, out, PackVolumes(num_workers=1), CONTRACT)
    a, b = files()
    save(source / "nifti/b.nii.gz", rng.integers(-900, 900, (8, 8, 8), np.int16))
    pack_volumes(source, out, PackVolumes(num_workers=1), CONTRACT)
    assert files()[0] == a
    assert files()[1] != b
    other = CONTRACT.model_copy(update={"spacing_mm": (3.0, 2.0, 2.0)})
    pack_volumes(source, out, PackVolumes(num_workers=1), other)
    assert not set(files()) & {a, b}
    pack_volumes(source, out, PackVolumes(num_workers=1, blank_header="pixdim"), CONTRACT)
    assert not set(files()) & {a, b}


def test_blank_headers_are_packed_only_by_the_setting(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-900, 900, (8, 8, 8), np.int16)
    header = nibabel.Nifti1Header()
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "in/nifti").mkdir(parents=True)
    content = header.binaryblock + bytes(4) + voxels.tobytes(order="F")
    (tmp_path / "in/nifti/blank.nii").write_bytes(content)
    write_manifest(tmp_path / "in", {"blank": "blank.nii"})
    with pytest.raises(ValueError, match="no_affine"):
        pack_volumes(tmp_path / "in", tmp_path / "out", PackVolumes(num_workers=1), CONTRACT)
    params = PackVolumes(num_workers=1, blank_header="pixdim")
    ledger = pack_volumes(tmp_path / "in", tmp_path / "out", params, CONTRACT)
    assert ledger.summary()["used"] == 1


def test_a_volume_without_millimetres_fills_the_field_of_view(tmp_path: Path) -> None:
    """Half the contract's voxels along each axis, so each voxel becomes two; none is padding."""
    half = np.random.default_rng(0).integers(-900, 900, (32, 32, 32), np.int16)
    (tmp_path / "in/nifti").mkdir(parents=True)
    write_nifti(half, None, tmp_path / "in/nifti/a.nii.gz")
    write_manifest(tmp_path / "in", {"a": "a.nii.gz"}, np.nan)
    pack_volumes(tmp_path / "in", tmp_path / "out", PackVolumes(num_workers=1), CONTRACT)
    (file,) = (tmp_path / "out/volumes").iterdir()
    packed = np.load(file, allow_pickle=False)
    assert packed.shape == (64, 64, 64)
    # Two new voxels stand a quarter to either side of a plane between old ones, so the mean of
    # eight is the mean of the eight old ones around that corner.
    inner = packed[1:-1, 1:-1, 1:-1].astype(float).reshape(31, 2, 31, 2, 31, 2)
    dhw = half.transpose(2, 1, 0).astype(float)
    corners = [dhw[a : a + 31, b : b + 31, c : c + 31] for a, b, c in np.ndindex(2, 2, 2)]
    np.testing.assert_allclose(inner.mean(axis=(1, 3, 5)), np.mean(corners, axis=0), atol=0.5)
