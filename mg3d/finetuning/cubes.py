"""Cubes around places in a scan, on an isotropic grid; only what is asked for is interpolated."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from mg3d.data.resample import _box_average  # the first half of `resample`
from mg3d.params import CandidateFinetune

_STRAIGHT = 1e-6  # off-diagonal elements below are no turn, as in `resample`


class IsotropicScan:
    """A scan on an isotropic grid along R, A and S, from which cubes are cut.

    The numbers are those of `mg3d.data.resample.resample` over the whole scan, cut afterwards; a
    scan has ten times as many voxels as the cubes that training sees of it.
    """

    def __init__(self, volume: np.ndarray, affine: np.ndarray, params: CandidateFinetune) -> None:
        """``volume`` HU (X, Y, Z) with ``affine`` (4x4) to RAS mm."""
        self.params = params
        step, low_hu = params.cube_spacing_mm, params.cube_window_hu[0]
        corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(volume.shape)[:, None] - 1)
        world = affine[:3, :3] @ corners + affine[:3, 3:]
        self.origin_mm, last = world.min(1), world.max(1)
        self.shape_xyz = np.ceil((last - self.origin_mm) / step).astype(int) + 1
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
        boxes = np.maximum(1, np.rint(step / spacing_mm)).astype(int)
        averaged = _box_average(volume, boxes.tolist(), low_hu)
        # Outside is low_hu, and a voxel at the border fades into it.
        self.averaged = np.pad(averaged, 1, constant_values=low_hu)
        # Voxel i of an averaged axis stands at k*i + (k-1)/2 of the original one.
        to_averaged = np.linalg.inv(affine[:3, :3] @ np.diag(boxes))
        self.matrix = to_averaged * step
        middle_mm = affine[:3, :3] @ ((boxes - 1) / 2) + affine[:3, 3]
        self.offset = to_averaged @ (self.origin_mm - middle_mm) + 1
        off_diagonal = self.matrix - np.diag(np.diag(self.matrix))
        self.is_straight = bool(np.abs(off_diagonal).max() < _STRAIGHT)

    def cube(self, place_lps_mm: Sequence[float]) -> np.ndarray:
        """int16 HU (D, H, W) of ``cube_voxels`` each way, the voxel nearest to the place at index
        ``cube_voxels // 2``; outside the scan, the window's minimum."""
        x, y, z = place_lps_mm
        centre = np.rint((np.array([-x, -y, z]) - self.origin_mm) / self.params.cube_spacing_mm)
        start = centre.astype(int) - self.params.cube_voxels // 2
        first = np.maximum(start, 0)
        size = np.minimum(start + self.params.cube_voxels, self.shape_xyz) - first
        cube = np.full((self.params.cube_voxels,) * 3, self.params.cube_window_hu[0], np.int16)
        if (size > 0).all():
            here = tuple(slice(a, a + n) for a, n in zip((first - start), size, strict=True))
            cube[here] = np.clip(np.rint(self._between(first, size)), -32768, 32767)
        return np.ascontiguousarray(cube.transpose(2, 1, 0))

    def _between(self, first: np.ndarray, size: np.ndarray) -> np.ndarray:
        """HU (X, Y, Z) at ``size`` grid places from ``first`` on, by linear interpolation."""
        if not self.is_straight:
            offset = self.matrix @ first + self.offset
            return ndimage.affine_transform(
                self.averaged, self.matrix, offset, output_shape=tuple(size), order=1,
                mode="nearest",
            )  # fmt: skip
        values = self.averaged
        for axis in range(3):  # one after the other: 2 products a voxel each instead of 8
            at = self.matrix[axis, axis] * (first[axis] + np.arange(size[axis]))
            at = np.clip(at + self.offset[axis], 0, self.averaged.shape[axis] - 1)
            below = np.minimum(at.astype(int), self.averaged.shape[axis] - 2)
            share = (at - below).reshape([-1 if a == axis else 1 for a in range(3)])
            lower = values.take(below, axis).astype(float)
            values = lower + share * (values.take(below + 1, axis) - lower)
        return values
