"""Stored values of a series -> HU.

Decoding is pydicom's with the plugins of pylibjpeg and GDCM; what they cannot decode is refused.
It also clears the unused bits, which may hold an overlay, and extends the sign of the stored ones.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.encaps import generate_frames
from pydicom.pixels import iter_pixels

from mg3d.data.ct.geometry import Grid
from mg3d.data.ct.header import Native, padding_of
from mg3d.data.ct.limits import Bounded, check_volume, coded_size, opened
from mg3d.data.ct.refused import Refused
from mg3d.data.ct.resample import to_grid
from mg3d.ledger import Reason
from mg3d.params import DicomVolumes

AIR_HU = -1000
PIXEL_TAGS: list[Any] = [
    *("SOPClassUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PlanarConfiguration", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]


@disable_value_validation()
def read_volume(grid: Grid, params: DicomVolumes) -> tuple[np.ndarray, np.ndarray]:
    """Decode a series -> (int16 [X, Y, Z], affine to RAS mm).

    Axes are reordered and flipped to the closest of R, A and S; an oblique series keeps its oblique
    affine and is not resampled. Raises Refused: `undecodable`, `oversized`.
    """
    rows, columns = grid.slices[0].size or (0, 0)
    shape = (columns, rows, len(grid.slices))
    for needed in (shape, grid.shape or shape):
        check_volume(needed, params.max_series_bytes)
    orientation = nibabel.orientations.io_orientation(grid.affine)
    affine = grid.affine @ nibabel.orientations.inv_ornt_aff(orientation, grid.shape or shape)
    if grid.origins is None:
        volume, slices = _empty(shape, orientation)
        _fill(slices, grid, params)
        return volume, affine
    assert grid.shape is not None
    slices = np.empty(shape, np.int16, order="F")
    _fill(slices, grid, params)
    fill = AIR_HU if params.padding_hu is None else params.padding_hu
    resampled = to_grid(slices, grid.origins, grid.shape, fill)
    return nibabel.orientations.apply_orientation(resampled, orientation), affine


def _empty(shape: tuple[int, ...], orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume in RAS, in the order of a NIfTI file, and its view [columns, rows, slices]."""
    turned = np.empty([shape[int(axis)] for axis in np.argsort(orientation[:, 0])], np.int16, "F")
    straight = np.array([[0, 1], [1, 1], [2, 1]])
    back = nibabel.orientations.ornt_transform(straight, orientation)
    return turned, nibabel.orientations.apply_orientation(turned, back)


def _fill(volume: np.ndarray, grid: Grid, params: DicomVolumes) -> None:
    """Decode the slices into ``volume`` [columns, rows, slices], each file in turn."""
    columns, rows, _ = volume.shape
    files: dict[Path, list[int]] = defaultdict(list)
    for index, header in enumerate(grid.slices):
        files[header.path].append(index)
    for path, indices in files.items():
        native = grid.slices[indices[0]].native
        if native is not None:
            padding = native.padding
            stored = iter([_read_native(path, native, (rows, columns))])
        else:
            frames = [grid.slices[index].frame for index in indices]
            data, stored = read_stored(path, frames, params.max_series_bytes)
            padding = padding_of(data)
        for index in indices:
            values = next(stored)
            if values.shape != (rows, columns):
                raise Refused(Reason.UNDECODABLE, f"pixels of shape {values.shape}")
            target = volume[:, :, index].T
            _rescale(values, grid.slices[index].rescale or (1.0, 0.0), target)
            if params.padding_hu is not None and padding:
                target[_padded(values, padding)] = params.padding_hu


def _read_native(path: Path, native: Native, size: tuple[int, int]) -> np.ndarray:
    """Stored values [rows, columns]; unused bits cleared, the sign extended."""
    values = np.empty(size, native.dtype)
    with path.open("rb", buffering=0) as file:
        file.seek(native.offset)
        if file.readinto(values.data.cast("B")) != values.nbytes:
            raise Refused(Reason.UNDECODABLE, "ends within the pixels")
    unused = 16 - native.bits_stored
    if unused:
        values <<= unused
        values >>= unused
    return values


def _rescale(values: np.ndarray, rescale: tuple[float, ...], target: np.ndarray) -> None:
    """Write int16 HU to ``target``: slope and intercept, rounded, clipped."""
    slope, intercept = rescale
    limits = np.iinfo(np.int16)
    if slope == 1 and intercept == int(intercept) and values.dtype in (np.int16, np.uint16):
        low, high = int(values.min()) + int(intercept), int(values.max()) + int(intercept)
        if limits.min <= low and high <= limits.max:
            # Right whatever overflows on the way: sums of 16 bits wrap around, and end in range.
            offset = np.uint16(int(intercept) & 0xFFFF)
            np.add(values.view(np.uint16), offset, out=target.view(np.uint16))
            return
    hu = values * np.float64(slope)
    hu += intercept
    np.rint(hu, out=hu)
    target[:] = np.clip(hu, limits.min, limits.max, out=hu)


def read_stored(
    path: Path, frames: Sequence[int | None], max_bytes: int
) -> tuple[pydicom.Dataset, Iterator[np.ndarray]]:
    """The data set of a file and its stored values [rows, columns], of each frame in turn.

    Raises Refused `undecodable` or `oversized`, and so does the iterator.
    """
    try:
        with path.open("rb") as file:
            whole = opened(file, max_bytes)
            data = pydicom.dcmread(Bounded(whole), force=True, specific_tags=PIXEL_TAGS)
        size = (data.Rows, data.Columns)
        if data.get("HighBit", data.BitsStored - 1) != data.BitsStored - 1:  # PS3.5 8.1.1
            raise Refused(
                Reason.UNDECODABLE, f"HighBit {data.HighBit} of {data.BitsStored} BitsStored"
            )
        if data.file_meta.TransferSyntaxUID.is_encapsulated:
            count = int(data.get("NumberOfFrames") or 1)
            for content in generate_frames(data.PixelData, number_of_frames=count):
                coded = coded_size(content)
                if coded is not None and coded != size:
                    raise Refused(Reason.UNDECODABLE, f"header says {size}, code stream {coded}")
    except Refused:
        raise
    except Exception as error:  # decoders meet arbitrary bytes
        raise Refused(Reason.UNDECODABLE, type(error).__name__) from None
    return data, _decode(data, frames)


def _decode(data: pydicom.FileDataset, frames: Sequence[int | None]) -> Iterator[np.ndarray]:
    indices = [frame for frame in frames if frame is not None]
    try:
        decoded = (
            iter_pixels(data, indices=indices) if indices else [data.pixel_array] * len(frames)
        )
        yield from decoded
    except Exception as error:  # decoders meet arbitrary bytes
        raise Refused(Reason.UNDECODABLE, type(error).__name__) from None


def _padded(values: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Where ``values`` are PixelPaddingValue, or between it and the limit (C.7.5.1.1.2)."""
    # The VR of both may contradict PixelRepresentation: read the bits as the pixels' type.
    typed = [np.array(end & 0xFFFF, np.uint16).astype(values.dtype) for end in ends]
    if len(typed) == 1:
        return values == typed[0]
    return (values >= min(typed)) & (values <= max(typed))
