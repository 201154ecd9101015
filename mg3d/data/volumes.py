"""STAGE pack_volumes: NIfTI -> the volume contract, as int16 arrays that memory-map.

A packed file's name holds a digest of all that decides its voxels: the NIfTI's bytes, the contract,
the setting, the code. So a file that exists is done: a stage killed at any point and started again
packs the remainder only, and so does one to which studies were added. Hence `persist: true` in
dvc.yaml, without which DVC would remove the files before it runs the stage.
"""

import hashlib
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import nibabel
import numpy as np
import scipy

from mg3d import paths
from mg3d.data import nifti, resample
from mg3d.data.nifti import RefusedNifti, load_nifti
from mg3d.data.resample import resample_to_contract
from mg3d.ledger import Ledger, Reason
from mg3d.parallel import parallel_map
from mg3d.params import PackVolumes, VolumeContract

COLUMNS = ["study_id", "volume", "volume_sha256", "contract_digest"]


def apply_window(volume_hu: np.ndarray, window_hu: tuple[int, int]) -> np.ndarray:
    """HU -> float32 in [0, 1]: ``window_hu`` = (low, high) maps to 0 and 1, clipped beyond."""
    low, high = window_hu
    clipped = np.clip(np.asarray(volume_hu), low, high)
    clipped -= clipped.dtype.type(low)
    # From int16 the difference is at most 65535: it wraps around, and is right as uint16.
    steps = clipped.view(np.uint16) if clipped.dtype == np.int16 else clipped
    windowed = steps.astype(np.float32)
    windowed *= np.float32(1 / (high - low))  # within an ulp of dividing, and a third of its time
    return windowed


@dataclass(frozen=True)
class _Packed:
    """What became of one volume: its file and the file's SHA-256, or why there is none."""

    file: str = ""
    sha256: str = ""
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True)
class _Study:
    """A study to pack. Without ``has_spacing`` its file holds no millimetres."""

    study_id: str
    file: Path
    has_spacing: bool


def _pack(out: Path, contract: VolumeContract, params: PackVolumes, study: _Study) -> _Packed:
    try:
        target = out / f"{study.study_id}-{_key(study.file, contract, params)}.npy"
        if not target.is_file():
            blank_header = params.blank_header if study.has_spacing else "pixdim"
            volume, affine = load_nifti(study.file, blank_header)
            _check_values(volume)
            if not study.has_spacing:
                affine = _filling(volume.shape, contract)
            packed = resample_to_contract(volume, affine, contract)
            with paths.atomic_write(target) as temporary:
                np.save(temporary, packed, allow_pickle=False)
    except RefusedNifti as refused:
        return _Packed(reason=refused.reason, detail=refused.detail)
    return _Packed(target.name, _sha256(target))


def _filling(shape_xyz: tuple[int, ...], contract: VolumeContract) -> np.ndarray:
    """Affine under which a volume without millimetres fills the contract's field of view."""
    extent_mm = np.array(contract.spacing_mm[::-1]) * contract.shape_voxels[::-1]
    return np.diag([*(extent_mm / shape_xyz), 1.0])


def _check_values(volume: np.ndarray) -> None:
    """Raise RefusedNifti if these values (X, Y, Z) are not those of a volume."""
    if min(volume.shape) < 2:
        raise RefusedNifti(Reason.WRONG_SHAPE, f"{volume.shape}: a single slice")
    low, high = volume.min(), volume.max()  # NaN if any voxel is NaN
    if not np.isfinite([low, high]).all():
        raise RefusedNifti(Reason.NOT_FINITE)
    if low == high:
        raise RefusedNifti(Reason.CONSTANT, f"{low} HU")


def _key(source: Path, contract: VolumeContract, params: PackVolumes) -> str:
    """Sixteen hex digits of what decides the voxels. Raises RefusedNifti `unreadable`."""
    try:
        content = _sha256(source)
    except OSError as error:
        raise RefusedNifti(Reason.UNREADABLE, type(error).__name__) from None
    parts = (content, contract.digest(), params.blank_header, _code())
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


@cache
def _code() -> str:
    """Versions of what computes: our files and the libraries."""
    ours = [_sha256(Path(str(file))) for file in (nifti.__file__, resample.__file__, __file__)]
    return "/".join([*ours, np.__version__, scipy.__version__, nibabel.__version__])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pack_volumes(source: Path, out: Path, params: PackVolumes, contract: VolumeContract) -> Ledger:
    """Pack every volume of ``source`` (what convert_volumes made of one source).

    ``out/volumes/<study_id>-<key>.npy`` is int16 HU (D, H, W), for ``np.load(mmap_mode="r",
    allow_pickle=False)``; a manifest lists them. Returns the ledger, also written to ``out``.
    Raises ValueError if there is no manifest, or no volume can be packed.
    """
    import pandas as pd

    table = source / paths.MANIFEST
    if not table.is_file():
        raise ValueError(f"no {table}: run convert_volumes first, or `dvc repro`")
    manifest = pd.read_parquet(table)
    ledger = Ledger("pack_volumes", "volume", manifest["study_id"])
    studies = [
        _Study(row.study_id, source / paths.NIFTI / row.nifti, row.spacing_x_mm == row.spacing_x_mm)
        for row in manifest.itertuples()
    ]
    folder = out / paths.VOLUMES
    work = partial(_pack, folder, contract, params)
    packed = parallel_map(work, studies, params.num_workers, "pack_volumes: volumes")
    rows = []
    for study_id, result in zip(manifest["study_id"], packed, strict=True):
        if result.reason is not None:
            ledger.quarantine(study_id, result.reason, result.detail)
            continue
        ledger.use(study_id)
        rows.append((study_id, result.file, result.sha256, contract.digest()))
    packed_manifest = pd.DataFrame(rows, columns=COLUMNS).sort_values("study_id")
    with paths.atomic_write(out / paths.MANIFEST) as temporary:
        packed_manifest.to_parquet(temporary, index=False)
    for stale in set(folder.glob("*")) - {folder / name for name in packed_manifest["volume"]}:
        stale.unlink()  # of other studies, of other contracts, of a kill in the middle of writing
    ledger.write(out)
    if not rows:
        raise ValueError(f"no volume of {table} could be packed: {ledger.summary()['reasons']}")
    return ledger
