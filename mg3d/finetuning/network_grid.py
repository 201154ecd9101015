"""The voxels that a segmentation network sees, and the way back to the voxels of the image.

An axis whose spacing is given is resampled; one with null stays as it is, slice for slice. Sizes
are padded to multiples of 32, half before and half after, because the encoder halves every axis
five times: a stack of 10 slices fills 10 of 32 planes and the rest is padding, whose share
`NetworkGrid.padding_fraction` tells. Repeating or interpolating slices would fill the planes with
what nobody measured.
"""

from dataclasses import dataclass

import nibabel
import numpy as np
from scipy.ndimage import affine_transform

from mg3d.data.resample import resample

DIVISOR = 32
Spacing = tuple[float | None, float | None, float | None]
_ONE = 1000  # masks travel as 0 and 1000 through the integers of `resample`


@dataclass(frozen=True)
class NetworkGrid:
    """A grid (D, H, W) over an image (X, Y, Z) in closest RAS.

    ``matrix`` and ``offset`` map a grid index (x, y, z) to the image's index. ``num_before`` and
    ``num_inside`` (D, H, W) say where in ``shape_voxels`` the image lies; the rest is padding.
    ``boxes`` (X, Y, Z) are the voxels that are averaged against aliasing.
    """

    shape_image: tuple[int, int, int]
    shape_voxels: tuple[int, int, int]
    num_before: tuple[int, int, int]
    num_inside: tuple[int, int, int]
    matrix: np.ndarray
    offset: np.ndarray
    boxes: tuple[int, int, int]

    @property
    def inside(self) -> tuple[slice, ...]:
        """The box (D, H, W) that the image fills."""
        return tuple(slice(a, a + n) for a, n in zip(self.num_before, self.num_inside, strict=True))

    @property
    def padding_fraction(self) -> float:
        """Share of the grid's voxels that are padding."""
        return 1 - float(np.prod(self.num_inside) / np.prod(self.shape_voxels))

    def from_image(self, image: np.ndarray, low: int) -> np.ndarray:
        """int16 (D, H, W) of an image (X, Y, Z); ``low`` is the least value and the padding."""
        to_image = np.eye(4)
        to_image[:3, :3], to_image[:3, 3] = self.matrix, self.offset
        return resample(image, np.eye(4), to_image, self.shape_voxels, low, list(self.boxes))

    def classes_from_image(self, classes: np.ndarray, num_classes: int) -> np.ndarray:
        """uint8 (D, H, W): the class with the largest share of each voxel, 0 is background."""
        shares = np.stack(
            [
                self.from_image((classes == number) * np.int16(_ONE), 0)
                for number in range(1, num_classes + 1)
            ]
        )
        background = _ONE - shares.sum(axis=0, keepdims=True)
        return np.concatenate([background, shares]).argmax(axis=0).astype(np.uint8)

    def to_image(self, values: np.ndarray) -> np.ndarray:
        """float32 (X, Y, Z) of values (D, H, W), by linear interpolation."""
        back = np.linalg.inv(self.matrix)
        straight = np.allclose(back, np.diag(np.diag(back)), atol=1e-9)
        return affine_transform(
            values.astype(np.float32).transpose(2, 1, 0),
            np.diag(back) if straight else back,
            -back @ self.offset,
            output_shape=self.shape_image,
            order=1,
            mode="nearest",
        )

    def classes_to_image(self, probabilities: np.ndarray) -> np.ndarray:
        """uint8 (X, Y, Z): the likeliest of [1 + classes, D, H, W] after interpolation."""
        best = self.to_image(probabilities[0])
        classes = np.zeros(self.shape_image, np.uint8)
        for number, values in enumerate(probabilities[1:], 1):
            here = self.to_image(values)
            classes[here > best] = number
            best = np.maximum(best, here)
        return classes


def network_grid(
    shape_image: tuple[int, ...], affine: np.ndarray, spacing_mm: Spacing
) -> NetworkGrid:
    """The grid of ``spacing_mm`` (z, y, x) that holds a whole image (X, Y, Z) in closest RAS.

    Aligned with R, A, S, so that an oblique image is straightened; but where an axis stays as it
    is, along the image's own axes, however oblique (short-axis stacks of the heart are).
    """
    shape = np.array(shape_image[:3])
    own_mm = np.linalg.norm(affine[:3, :3], axis=0)
    wanted = spacing_mm[::-1]
    frame = np.diag(own_mm) if None in wanted else affine[:3, :3]
    target_mm = np.array(
        [own if want is None else want for own, want in zip(own_mm, wanted, strict=True)]
    )
    num_inside = np.ceil(np.abs(frame) @ shape / target_mm - 1e-6).astype(int)
    num_voxels = -(-num_inside // DIVISOR) * DIVISOR
    num_before = (num_voxels - num_inside) // 2
    matrix = np.linalg.inv(frame) @ np.diag(target_mm)
    offset = (shape - 1) / 2 - matrix @ (num_before + (num_inside - 1) / 2)
    along = np.abs(frame / own_mm).argmax(axis=0)  # which of target_mm each array axis runs along
    boxes = np.maximum(1, np.rint(target_mm[along] / own_mm)).astype(int)
    return NetworkGrid(
        shape_image=_three(shape),
        shape_voxels=_three(num_voxels[::-1]),
        num_before=_three(num_before[::-1]),
        num_inside=_three(num_inside[::-1]),
        matrix=matrix,
        offset=offset,
        boxes=_three(boxes),
    )


def to_file_order(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """An array (X, Y, Z) in closest RAS as a file with ``affine`` stores it."""
    ras = nibabel.orientations.axcodes2ornt("RAS")
    stored = nibabel.orientations.io_orientation(affine)
    turn = nibabel.orientations.ornt_transform(ras, stored)
    return nibabel.orientations.apply_orientation(image, turn)


def _three(values: np.ndarray) -> tuple[int, int, int]:
    first, second, third = (int(value) for value in values)
    return first, second, third
