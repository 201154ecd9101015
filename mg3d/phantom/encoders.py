"""Files whose every byte we choose: gzip, NIfTI-1, MetaImage, JPEG, PNG.

Libraries write dates, versions and compressor-dependent bytes; a cohort that is pinned by a hash
cannot have them. Readers do not notice: the tests read everything back with the usual libraries.
"""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mg3d.phantom.canvas import Grid, Vector

# MTIME 0, no extra flags, OS unknown (RFC 1952, 2.3).
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
STORED_BLOCK = 0xFFFF


def gzip_stored(content: bytes) -> bytes:
    """``content`` as one gzip member of stored deflate blocks (RFC 1951, 3.2.4): no compressor."""
    pieces = [GZIP_HEADER]
    starts = range(0, len(content), STORED_BLOCK) or range(1)
    for start in starts:
        block = content[start : start + STORED_BLOCK]
        is_last = start + STORED_BLOCK >= len(content)
        pieces += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    pieces.append(struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF))
    return b"".join(pieces)


# Quaternion (b, c, d) and qfac of the three orientations that the layouts use.
NIFTI_ORIENTATIONS: dict[str, tuple[tuple[float, float, float], float]] = {
    "RAS": ((0.0, 0.0, 0.0), 1.0),
    "LPS": ((0.0, 0.0, 1.0), 1.0),
    "LAS": ((0.0, 1.0, 0.0), -1.0),
}
NIFTI_TYPES = {"int16": (4, 16), "uint8": (2, 8)}


def nifti(voxels: np.ndarray, grid: Grid, orientation: str = "LPS") -> bytes:
    """NIfTI-1 single file (uncompressed) of ``voxels`` (D, H, W) on an axial grid.

    ``orientation`` names the directions in which the stored x, y, z indices grow: RAS, LPS or LAS.
    sform and qform agree; world coordinates are scanner RAS mm.
    """
    assert not grid.is_oblique, "the downstream layouts use axial grids"
    data = np.ascontiguousarray(
        voxels[:, :: 1 if orientation[1] == "P" else -1, :: 1 if orientation[0] == "L" else -1]
    )
    depth, height, width = data.shape
    dz, dy, dx = grid.spacing_mm
    first = grid.position(
        (
            0,
            0 if orientation[1] == "P" else height - 1,
            0 if orientation[0] == "L" else width - 1,
        )
    )
    offset = (-first[0], -first[1], first[2])
    signs = (
        -1.0 if orientation[0] == "L" else 1.0,
        -1.0 if orientation[1] == "P" else 1.0,
        1.0,
    )
    quaternion, qfac = NIFTI_ORIENTATIONS[orientation]
    code, bits = NIFTI_TYPES[data.dtype.name]
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, width, height, depth, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, qfac, dx, dy, dz, 1.0, 1.0, 1.0, 1.0)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)  # vox_offset, slope, intercept
    header[123] = 2  # millimetres
    struct.pack_into("<2h", header, 252, 1, 1)  # qform and sform: scanner
    struct.pack_into("<6f", header, 256, *quaternion, *offset)
    for row, (sign, step) in enumerate(zip(signs, (dx, dy, dz), strict=True)):
        values = [0.0, 0.0, 0.0, offset[row]]
        values[row] = sign * step
        struct.pack_into("<4f", header, 280 + 16 * row, *values)
    header[344:348] = b"n+1\x00"
    return bytes(header) + data.astype(data.dtype.newbyteorder("<")).tobytes()


def write_nifti_gz(path: Path, voxels: np.ndarray, grid: Grid, orientation: str = "LPS") -> None:
    """:func:`nifti`, gzipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip_stored(nifti(voxels, grid, orientation)))


def write_mha(path: Path, voxels: np.ndarray, grid: Grid, keys: Mapping[str, str]) -> None:
    """MetaImage of int16 voxels (D, H, W) in LPS, uncompressed; ``keys`` go into the header."""
    matrix = " ".join(f"{value:.9g}" for axis in (grid.right, grid.down, grid.up) for value in axis)
    header = _metaimage(voxels, grid, matrix, grid.origin_mm, "LOCAL", keys)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + voxels.astype("<i2").tobytes())


def write_mhd(folder: Path, name: str, voxels: np.ndarray, grid: Grid, flipped: bool) -> None:
    """``<name>.mhd`` and ``<name>.raw`` of int16 voxels (D, H, W) on an axial grid in LPS.

    ``flipped`` stores rows and columns backwards, with direction cosines of -1 that say so.
    """
    assert not grid.is_oblique, "the downstream layouts use axial grids"
    _, height, width = voxels.shape
    sign = -1 if flipped else 1
    first = grid.position((0, height - 1, width - 1)) if flipped else grid.origin_mm
    header = _metaimage(voxels, grid, f"{sign} 0 0 0 {sign} 0 0 0 1", first, f"{name}.raw", {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.mhd").write_bytes(header)
    (folder / f"{name}.raw").write_bytes(voxels[:, ::sign, ::sign].astype("<i2").tobytes())


def _metaimage(
    voxels: np.ndarray, grid: Grid, matrix: str, offset: Vector, data: str, keys: Mapping[str, str]
) -> bytes:
    """Header of a MetaImage whose voxels lie in ``data``."""
    assert voxels.dtype == np.int16
    depth, height, width = voxels.shape
    dz, dy, dx = grid.spacing_mm
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": matrix,
        "Offset": " ".join(f"{value:.6f}" for value in offset),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": f"{dx:g} {dy:g} {dz:g}",
        "DimSize": f"{width} {height} {depth}",
        **keys,
        "ElementType": "MET_SHORT",
        "ElementDataFile": data,
    }
    return "".join(f"{key} = {value}\n" for key, value in header.items()).encode()


def write_jpeg(path: Path, pixels: np.ndarray) -> None:
    """Grey 8-bit baseline JPEG, quality 90; bytes are those of the pinned Pillow."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, optimize=False, progressive=False)
    path.write_bytes(stream.getvalue())


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Grey 8-bit PNG (ISO/IEC 15948), rows unfiltered, deflate blocks stored: no compressor."""
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(np.uint8))
    blocks = []
    for start in range(0, len(rows), STORED_BLOCK):
        block = rows[start : start + STORED_BLOCK]
        is_last = start + STORED_BLOCK >= len(rows)
        blocks += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    data = b"\x78\x01" + b"".join(blocks) + struct.pack(">I", zlib.adler32(rows))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Indented UTF-8 JSON with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
