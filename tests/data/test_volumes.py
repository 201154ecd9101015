"""pack_volumes: the window, every bad input in the ledger, kill and resume."""

import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from mg3d.data.volumes import apply_window, pack_volumes
from mg3d.params import PackVolumes, VolumeContract

CONTRACT = VolumeContract(spacing_mm=(2.0, 2.0, 2.0), shape_voxels=(64, 64, 64))


def test_window() -> None:
    hu = np.array([-2000, -1000, 0, 250, 500, 3000], np.int16)
    windowed = apply_window(hu, (-1000, 500))
    assert windowed.dtype == np.float32
    np.testing.assert_allclose(windowed, [0, 0, 2 / 3, 1250 / 1500, 1, 1], rtol=1e-6)


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
    pd.DataFrame({"study_id": names, "nifti": [f"{n}.nii.gz" for n in names]}).to_parquet(
        tmp_path / "in/manifest.parquet"
    )
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
    with pytest.raises(ValueError, match="run convert_dicom first"):
        pack_volumes(tmp_path, tmp_path / "out", PackVolumes(), CONTRACT)
    pd.DataFrame({"study_id": ["a"], "nifti": ["a.nii.gz"]}).to_parquet(
        tmp_path / "manifest.parquet"
    )
    with pytest.raises(ValueError, match=r"could be packed.*unreadable"):
        pack_volumes(tmp_path, tmp_path / "out", PackVolumes(), CONTRACT)
