"""NIfTI files as they are in the wild: voxels, and one affine to RAS millimetres or a reason.

The content decides what a file is, its name does not. docs/datasets.md lists the rules.
"""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import nibabel
import numpy as np
from isal import igzip, isal_zlib

from mg3d.data.ct.refused import Refused
from mg3d.ledger import Reason

HeaderDataError: type[Exception] = nibabel.spatialimages.HeaderDataError
DeflateError = cast(type[Exception], isal_zlib.IsalError)  # its stub says: an instance

MAX_VOXELS = 2**30  # 2 GiB of int16, 4 GiB of float32; the largest chest CT have half as many
SPACING_MM = (0.02, 50.0)
MIN_DETERMINANT = 0.5  # of the axes' unit vectors: 1 if orthogonal, 0.5 if sheared by 60 degrees
AGREE_VOXELS = 0.5  # how far qform and sform may move a corner, in sizes of the smallest voxel
TEMPLATES = (3, 4)  # codes of Talairach and MNI space, whose millimetres are not the patient's
UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown counts as mm, metre, mm, micrometre
MAX_HEADER_BYTES = 2**26  # with its extensions
CHUNK_VOXELS = 2**18  # converted at a time

BlankHeader = Literal["refuse", "pixdim"]


class RefusedNifti(Refused, ValueError):
    """A file that cannot be used. A ValueError too, for who reads one file and has no ledger."""


def load_nifti(path: Path, blank_header: BlankHeader = "refuse") -> tuple[np.ndarray, np.ndarray]:
    """Array (X, Y, Z) and its 4x4 affine to RAS mm, axes reordered and flipped to closest RAS.

    int16 as stored, anything else float32 after the file's own scaling; trailing axes of one are
    dropped. ``blank_header`` says what a file without qform and sform is: refused, or its array
    taken as RAS with the spacing of pixdim (method 1 of the NIfTI-1 standard). Memory: the array,
    and a chunk of the file. Raises RefusedNifti, a ValueError.
    """
    with _opened(path) as (stream, is_gzip):
        header = _read_header(stream)
        shape = _shape(header)
        affine = _affine(header, shape, blank_header)
        mapped = None if is_gzip else _map_voxels(path, header, shape)
        voxels = _voxels(stream, header, shape) if mapped is None else mapped
        stream.read(CHUNK_VOXELS)  # a little beyond, so that gzip checks its checksum
    orientation = nibabel.orientations.io_orientation(affine)
    to_ras = nibabel.orientations.inv_ornt_aff(orientation, shape)
    return nibabel.orientations.apply_orientation(voxels, orientation), affine @ to_ras


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file's content, decompressed if it is gzip, and whether it is. Errors become reasons."""
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if is_gzip:
                with igzip.IGzipFile(fileobj=file) as stream:
                    yield cast(BinaryIO, stream), True
            else:
                yield file, False
    except RefusedNifti:
        raise
    except EOFError:
        raise RefusedNifti(Reason.TRUNCATED, "gzip ends early") from None
    except (gzip.BadGzipFile, DeflateError):
        raise RefusedNifti(Reason.CHECKSUM_MISMATCH, "gzip is damaged") from None
    except OSError as error:
        raise RefusedNifti(Reason.UNREADABLE, type(error).__name__) from None


def _read_header(stream: BinaryIO) -> Any:
    """The header of a NIfTI-1 or NIfTI-2 single file, of either byte order; stream after it."""
    block = stream.read(348)
    for order in ("<", ">"):
        size = int.from_bytes(block[:4], "little" if order == "<" else "big")
        if size == 348 and block[344:348] == b"n+1\0":
            header_class = nibabel.Nifti1Header
        elif size == 540 and block[4:8] == b"n+2\0":
            header_class = nibabel.Nifti2Header
            block += stream.read(540 - 348)
        else:
            continue
        try:
            header = header_class(block, endianness=order, check=False)  # checking would repair
            skip = int(header.get_data_offset()) - len(block)
        except (HeaderDataError, ValueError, OverflowError):
            raise RefusedNifti(Reason.UNREADABLE, "header is damaged") from None
        if not 0 <= skip <= MAX_HEADER_BYTES:
            raise RefusedNifti(Reason.UNREADABLE, "voxels begin nowhere")
        if len(stream.read(skip)) < skip:
            raise RefusedNifti(Reason.TRUNCATED, "file ends before its voxels")
        return header
    detail = "half of a .hdr/.img pair" if block[344:347] == b"ni1" else "not a NIfTI file"
    raise RefusedNifti(Reason.UNREADABLE, detail)


def _shape(header: Any) -> tuple[int, int, int]:
    """Sizes of the three axes. Raises RefusedNifti `wrong_shape` or `too_large`."""
    shape = tuple(int(size) for size in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise RefusedNifti(Reason.WRONG_SHAPE, f"{shape}: expected three axes")
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise RefusedNifti(Reason.TOO_LARGE, f"{shape} is over {MAX_VOXELS} voxels")
    return cast(tuple[int, int, int], shape)


def _affine(header: Any, shape: tuple[int, int, int], blank_header: BlankHeader) -> np.ndarray:
    """The affine to RAS mm that wins, see docs/datasets.md; scaled to mm."""
    qform, sform = _form(header, "q"), _form(header, "s")
    qcode, scode = int(header["qform_code"]), int(header["sform_code"])
    if qform is not None and sform is not None:
        if scode in TEMPLATES and qcode not in TEMPLATES:
            affine = qform
        else:
            _check_agreement(qform, sform, shape)
            affine = sform
    elif sform is not None:
        affine = sform
    elif qform is not None:
        affine = qform
    elif qcode > 0 or scode > 0:
        raise RefusedNifti(Reason.BAD_AFFINE, "neither qform nor sform is invertible")
    elif blank_header == "refuse":
        raise RefusedNifti(Reason.NO_AFFINE, "no qform and no sform")
    else:
        affine = np.diag([*np.abs(header["pixdim"][1:4]), 1.0])
    unit_code = int(header["xyzt_units"]) & 7
    if unit_code not in UNITS_MM:
        raise RefusedNifti(Reason.BAD_AFFINE, f"unit of length {unit_code}")
    affine = affine.astype(float)
    affine[:3] *= UNITS_MM[unit_code]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < SPACING_MM[0] or spacing.max() > SPACING_MM[1]:
        text = " x ".join(f"{size:.4g}" for size in spacing)
        raise RefusedNifti(Reason.IMPLAUSIBLE_SPACING, f"{text} mm")
    return affine


def _form(header: Any, name: Literal["q", "s"]) -> np.ndarray | None:
    """qform or sform in the file's units; None if it is not set, or not invertible."""
    if int(header[f"{name}form_code"]) <= 0:
        return None
    try:
        form = header.get_qform() if name == "q" else header.get_sform()
    except (HeaderDataError, ValueError):
        return None
    spacing = np.linalg.norm(form[:3, :3], axis=0)
    if not np.isfinite(form).all() or spacing.min() == 0:
        return None
    determinant = np.linalg.det(form[:3, :3] / spacing)
    return form if abs(determinant) >= MIN_DETERMINANT else None


def _check_agreement(qform: np.ndarray, sform: np.ndarray, shape: tuple[int, int, int]) -> None:
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape)[:, None] - 1)
    corners = np.vstack([corners, np.ones(8)])
    apart = np.linalg.norm(((qform - sform) @ corners)[:3], axis=0).max()
    voxel = np.linalg.norm(sform[:3, :3], axis=0).min()
    if apart > AGREE_VOXELS * voxel:
        raise RefusedNifti(
            Reason.AFFINES_DISAGREE, f"qform and sform are {apart / voxel:.1f} voxels apart"
        )


def _stored(header: Any) -> tuple[np.dtype, float, float, type]:
    """dtype in the file, slope, intercept, dtype in memory."""
    try:
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except (HeaderDataError, KeyError):
        raise RefusedNifti(Reason.UNREADABLE, "header has no valid type or scaling") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise RefusedNifti(Reason.UNREADABLE, f"voxels of type {dtype}")
    scaling = (1.0, 0.0) if slope is None else (float(slope), float(intercept))
    is_int16 = dtype.newbyteorder("=") == np.int16 and scaling == (1.0, 0.0)
    return dtype, *scaling, np.int16 if is_int16 else np.float32


def _map_voxels(path: Path, header: Any, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Voxels that need no conversion, as a read-only memory map; None if they need one."""
    dtype, slope, intercept, target = _stored(header)
    if dtype != target or (slope, intercept) != (1.0, 0.0):
        return None
    offset = int(header.get_data_offset())
    if path.stat().st_size < offset + int(np.prod(shape)) * dtype.itemsize:
        raise RefusedNifti(Reason.TRUNCATED, "file ends early")
    return np.memmap(path, target, "r", offset, shape, order="F")


def _voxels(stream: BinaryIO, header: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """Voxels (X, Y, Z), X running fastest; int16 or float32."""
    dtype, slope, intercept, target = _stored(header)
    count = int(np.prod(shape))
    if dtype == target and (slope, intercept) == (1.0, 0.0):
        return np.frombuffer(_read(stream, count * dtype.itemsize), target).reshape(
            shape, order="F"
        )
    voxels: np.ndarray = np.empty(count, target)
    for start in range(0, count, CHUNK_VOXELS):
        size = min(CHUNK_VOXELS, count - start)
        chunk = np.frombuffer(_read(stream, size * dtype.itemsize), dtype)
        if (slope, intercept) != (1.0, 0.0):
            chunk = chunk * np.float64(slope) + np.float64(intercept)
        with np.errstate(over="ignore"):  # beyond float32 is inf, which is refused later
            voxels[start : start + size] = chunk
    return voxels.reshape(shape, order="F")


def _read(stream: BinaryIO, num_bytes: int) -> bytes:
    content = stream.read(num_bytes)
    if len(content) < num_bytes:
        raise RefusedNifti(Reason.TRUNCATED, "file ends early")
    return content
