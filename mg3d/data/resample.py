"""A volume on any grid -> the volume contract's grid.

Axes: NIfTI arrays are (X, Y, Z) in RAS, tensors and packed arrays are (D, H, W) = (z, y, x);
`xyz_to_dhw` is the one place where they are swapped. Indices grow towards right, front and head.
"""

import numpy as np
from scipy import ndimage

from mg3d.params import VolumeContract


def xyz_to_dhw(array: np.ndarray) -> np.ndarray:
    """(X, Y, Z) -> (Z, Y, X) = (D, H, W), a view. Its own inverse."""
    return array.transpose(2, 1, 0)


def resample_to_contract(
    volume_xyz: np.ndarray, affine: np.ndarray, contract: VolumeContract
) -> np.ndarray:
    """HU (X, Y, Z) with ``affine`` (4x4, RAS mm) -> int16 (D, H, W) under ``contract``.

    The new grid is aligned with R, A and S (an oblique or sheared volume is straightened), has the
    contract's spacing and shape, and shares its centre with the volume's. Values are interpolated
    linearly; the space outside, and HU below the window, count as the window's minimum (scanners
    pad with -2000 or -3024, which would bleed into the body). Against aliasing, an axis with k
    times too many voxels is first averaged in boxes of k = round(contract spacing / spacing).
    """
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    target_mm = np.array(contract.spacing_mm[::-1])  # x, y, z
    # Which world axis each array axis runs along, to compare like with like.
    world = np.abs(affine[:3, :3] / spacing_mm).argmax(axis=0)
    boxes = np.maximum(1, np.rint(target_mm[world] / spacing_mm)).astype(int)
    grid = contract_grid(volume_xyz.shape, affine, contract)
    return resample(
        volume_xyz, affine, grid, contract.shape_voxels, contract.window_hu[0], boxes.tolist()
    )


def contract_grid(
    shape_xyz: tuple[int, ...], affine: np.ndarray, contract: VolumeContract
) -> np.ndarray:
    """Affine (x, y, z voxels -> RAS mm) of the contract's grid, centred on the volume."""
    target_mm = np.array(contract.spacing_mm[::-1])
    shape = np.array(contract.shape_voxels[::-1])
    grid = np.diag([*target_mm, 1.0])
    centre = affine[:3, :3] @ ((np.array(shape_xyz) - 1) / 2) + affine[:3, 3]
    grid[:3, 3] = centre - target_mm * (shape - 1) / 2
    return grid


def resample(
    volume_xyz: np.ndarray,
    affine: np.ndarray,
    grid: np.ndarray,
    shape_dhw: tuple[int, int, int],
    low_hu: int,
    boxes: list[int],
) -> np.ndarray:
    """int16 HU (D, H, W) on ``grid`` (4x4, its voxels -> RAS mm): average in boxes, then linear.

    Memory beside the volume: the averaged one in float32, and one box's planes.
    """
    averaged = _box_average(volume_xyz, boxes, low_hu)
    # Voxel i of an averaged axis stands at k*i + (k-1)/2 of the original one.
    sizes = np.array(boxes)
    box_affine = affine @ np.vstack(
        [np.column_stack([np.diag(sizes), (sizes - 1) / 2]), [0.0, 0.0, 0.0, 1.0]]
    )
    to_source = np.linalg.inv(box_affine) @ grid
    matrix = to_source[:3, :3]
    if np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-6):
        matrix = np.diag(matrix)  # not turned: scipy then goes axis by axis, four times faster
    resampled = ndimage.affine_transform(
        averaged,
        matrix,
        to_source[:3, 3],
        output_shape=tuple(shape_dhw[::-1]),
        order=1,
        mode="grid-constant",
        cval=low_hu,
    )
    limits = np.iinfo(np.int16)
    hu = np.clip(np.rint(resampled), limits.min, limits.max).astype(np.int16)
    return np.ascontiguousarray(xyz_to_dhw(hu))


def _box_average(volume: np.ndarray, boxes: list[int], low_hu: int) -> np.ndarray:
    """Mean over boxes of max(``volume``, ``low_hu``), float32 in C order; the border is repeated
    to make the last box whole.

    Planes are read once, in the order of memory, and shrunk while they are in the cache; integers
    are summed exactly (boxes up to 512 voxels) and divided once.
    """
    slow, middle, fast = np.argsort([-abs(stride) for stride in volume.strides], kind="stable")
    planes = volume.transpose(slow, middle, fast)
    averaged = np.empty(
        [-(-size // box) for size, box in zip(volume.shape, boxes, strict=True)], np.float32
    )
    rows = averaged.transpose(slow, middle, fast)
    in_memory = np.int16 if volume.dtype == np.int16 else np.float32
    low = in_memory(low_hu)
    # `clip` is several times as fast as `maximum`.
    high = np.iinfo(np.int16).max if in_memory is np.int16 else np.float32(np.inf)
    for index in range(len(rows)):
        first, last = index * boxes[slow], len(planes) - 1
        total = np.zeros(planes.shape[1:], np.float32)
        for number in range(first, first + boxes[slow]):
            plane = planes[min(number, last)].astype(in_memory, copy=False)
            total += np.clip(plane, low, high).astype(np.float32, copy=False)
        rows[index] = _box_sum(_box_sum(total, boxes[middle]).T, boxes[fast]).T
    averaged /= np.float32(np.prod(boxes))
    return averaged


def _box_sum(rows: np.ndarray, box: int) -> np.ndarray:
    """Sums of ``box`` neighbours along the first axis; the last row fills the last box."""
    missing = -len(rows) % box
    if missing:
        rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
    total = rows[::box].copy(order="K")
    for offset in range(1, box):
        total += rows[offset::box]
    return total
