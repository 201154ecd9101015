"""STAGE pack_volumes: NIfTI -> the volume contract, as int16 arrays that memory-map.

Axes: NIfTI arrays are (X, Y, Z) in RAS, tensors and packed arrays are (D, H, W) = (z, y, x);
`xyz_to_dhw` is the one place where they are swapped. Indices grow towards right, front and head.
"""

import hashlib
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage

from mg3d import paths
from mg3d.ledger import Ledger, Reason
from mg3d.parallel import parallel_map
from mg3d.params import PackVolumes, VolumeContract

COLUMNS = ["study_id", "volume", "volume_sha256", "contract_digest"]


_READ_ERRORS = (
    *(nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError),
    *(OSError, EOFError, ValueError, zlib.error),
)


class WrongShape(ValueError):
    """An image that is not three-dimensional."""


def xyz_to_dhw(array: np.ndarray) -> np.ndarray:
    """(X, Y, Z) -> (Z, Y, X) = (D, H, W), a view. Its own inverse."""
    return array.transpose(2, 1, 0)


def apply_window(volume_hu: np.ndarray, window_hu: tuple[int, int]) -> np.ndarray:
    """HU -> float32 in [0, 1]: ``window_hu`` = (low, high) maps to 0 and 1, clipped beyond."""
    low, high = window_hu
    windowed = np.clip(volume_hu, low, high).astype(np.float32)
    windowed -= low
    windowed /= high - low
    return windowed


def load_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array (X, Y, Z) and its 4x4 affine to RAS mm, axes reordered and flipped to closest RAS.

    int16 as stored, anything else float32 after the file's own scaling. Raises ValueError if the
    file is no NIfTI image or is truncated, WrongShape if it is not three-dimensional (trailing axes
    of one are dropped).
    """
    try:
        image: Any = nibabel.load(path)
        shape = image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        data = np.asanyarray(image.dataobj).reshape(shape)
    except _READ_ERRORS as error:
        raise ValueError(f"cannot read {path.name} as NIfTI: {type(error).__name__}") from None
    if data.ndim != 3:
        raise WrongShape(f"{path.name} has shape {data.shape}: expected three axes")
    if data.dtype != np.int16:
        data = data.astype(np.float32)
    orientation = nibabel.orientations.io_orientation(image.affine)
    if np.isnan(orientation).any() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise ValueError(f"{path.name} has no usable affine: {image.affine.tolist()}")
    affine = image.affine @ nibabel.orientations.inv_ornt_aff(orientation, data.shape)
    return nibabel.orientations.apply_orientation(data, orientation), affine


def resample_to_contract(
    volume_xyz: np.ndarray, affine: np.ndarray, contract: VolumeContract
) -> np.ndarray:
    """HU (X, Y, Z) with ``affine`` (4x4, RAS mm) -> int16 (D, H, W) under ``contract``.

    The new grid is aligned with R, A and S (an oblique volume is turned), has the contract's
    spacing and shape, and shares its centre with the volume's. Values are interpolated linearly;
    the space outside, and HU below the window, count as the window's minimum (scanners pad with
    -2000 or -3024, which would bleed into the body). Against aliasing, an axis with k times too
    many voxels is first averaged in boxes of k = round(contract spacing / spacing).
    """
    low = contract.window_hu[0]
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    target_mm = np.array(contract.spacing_mm[::-1])  # x, y, z
    shape = np.array(contract.shape_voxels[::-1])
    # Which world axis each array axis runs along, to compare like with like.
    world = np.abs(affine[:3, :3] / spacing_mm).argmax(axis=0)
    boxes = np.maximum(1, np.rint(target_mm[world] / spacing_mm)).astype(int)
    averaged = _box_average(np.maximum(volume_xyz, low), boxes)

    # Voxel i of an averaged axis stands at k*i + (k-1)/2 of the original one.
    box_affine = affine @ np.vstack(
        [np.column_stack([np.diag(boxes), (boxes - 1) / 2]), [0.0, 0.0, 0.0, 1.0]]
    )
    grid = np.diag([*target_mm, 1.0])
    centre = affine[:3, :3] @ ((np.array(volume_xyz.shape) - 1) / 2) + affine[:3, 3]
    grid[:3, 3] = centre - target_mm * (shape - 1) / 2
    to_source = np.linalg.inv(box_affine) @ grid
    matrix = to_source[:3, :3]
    if np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-6):
        matrix = np.diag(matrix)  # not turned: scipy then goes axis by axis, four times faster
    resampled = ndimage.affine_transform(
        np.ascontiguousarray(averaged),
        matrix,
        to_source[:3, 3],
        output_shape=tuple(shape),
        order=1,
        mode="grid-constant",
        cval=low,
    )
    limits = np.iinfo(np.int16)
    hu = np.clip(np.rint(resampled), limits.min, limits.max).astype(np.int16)
    return np.ascontiguousarray(xyz_to_dhw(hu))


def _box_average(volume: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Mean over boxes of ``boxes`` voxels, float32; the last box repeats the border to be whole."""
    for axis, box in enumerate(boxes.tolist()):
        if box == 1:
            continue
        missing = -volume.shape[axis] % box
        if missing:
            padding = [(0, 0)] * 3
            padding[axis] = (0, missing)
            volume = np.pad(volume, padding, mode="edge")
        shape = [*volume.shape]
        shape[axis : axis + 1] = [shape[axis] // box, box]
        volume = volume.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    return volume.astype(np.float32, copy=False)


@dataclass(frozen=True)
class _Packed:
    """What became of one volume: its file's SHA-256, or why there is none."""

    sha256: str = ""
    reason: Reason | None = None
    detail: str = ""


def _pack(out: Path, contract: VolumeContract, source: Path) -> _Packed:
    try:
        volume, affine = load_nifti(source)
    except WrongShape:
        return _Packed(reason=Reason.WRONG_SHAPE)
    except ValueError:
        return _Packed(reason=Reason.UNREADABLE)
    if min(volume.shape) < 2:
        return _Packed(reason=Reason.WRONG_SHAPE, detail=str(volume.shape))
    if volume.dtype != np.int16 and not np.isfinite(volume).all():
        return _Packed(reason=Reason.NOT_FINITE)
    if volume.min() == volume.max():
        return _Packed(reason=Reason.CONSTANT, detail=f"{volume.min()} HU")
    packed = resample_to_contract(volume, affine, contract)
    target = out / f"{_study(source)}.npy"
    with paths.atomic_write(target) as temporary:
        np.save(temporary, packed, allow_pickle=False)
        sha256 = hashlib.sha256(temporary.read_bytes()).hexdigest()
    return _Packed(sha256)


def _study(nifti: Path) -> str:
    return nifti.name.removesuffix(".gz").removesuffix(".nii")


def pack_volumes(source: Path, out: Path, params: PackVolumes, contract: VolumeContract) -> Ledger:
    """Pack every volume of ``source`` (convert_dicom) as ``out/volumes/<study_id>.npy``.

    int16 HU (D, H, W), for ``np.load(mmap_mode="r", allow_pickle=False)``, plus a manifest. Returns
    the ledger, also written to ``out``. Raises ValueError if there is no manifest, or no volume can
    be packed.
    """
    import pandas as pd

    table = source / paths.MANIFEST
    if not table.is_file():
        raise ValueError(f"no {table}: run convert_dicom first, or `dvc repro`")
    manifest = pd.read_parquet(table)
    ledger = Ledger("pack_volumes", "volume", manifest["study_id"])
    files = [source / paths.NIFTI / name for name in manifest["nifti"]]
    folder = out / paths.VOLUMES
    work = partial(_pack, folder, contract)
    packed = parallel_map(work, files, params.num_workers, "pack_volumes: volumes")
    rows = []
    for study_id, result in zip(manifest["study_id"], packed, strict=True):
        if result.reason is not None:
            ledger.quarantine(study_id, result.reason, result.detail)
            continue
        ledger.use(study_id)
        rows.append((study_id, f"{study_id}.npy", result.sha256, contract.digest()))
    packed_manifest = pd.DataFrame(rows, columns=COLUMNS).sort_values("study_id")
    with paths.atomic_write(out / paths.MANIFEST) as temporary:
        packed_manifest.to_parquet(temporary, index=False)
    for stale in set(folder.glob("*.npy")) - {folder / name for name in packed_manifest["volume"]}:
        stale.unlink()
    ledger.write(out)
    if not rows:
        raise ValueError(f"no volume of {table} could be packed: {ledger.summary()['reasons']}")
    return ledger
