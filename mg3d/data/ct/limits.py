"""Bounds in time and memory, checked before anything is allocated.

A header may claim more than the file holds: rows and columns up to 65,535, any number of frames, a
code stream larger than its header says, a deflated stream of zeros.
"""

import io
import os
import struct
import zlib
from typing import BinaryIO

from mg3d.data.ct.refused import Refused
from mg3d.ledger import Reason

MAX_COMPRESSION = 1000  # an empty 512 x 512 slice as JPEG 2000, with its header, reaches about 350
DEFLATED = b"1.2.840.10008.1.2.1.99"
EXPLICIT = b"1.2.840.10008.1.2.1"
MAX_READS = 5_000_000  # a thousand frames with functional groups need a fifth; some seconds
JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF of JPEG and JPEG-LS


class Bounded:
    """A file that may be read so many times: a parser reads at least once for each element."""

    def __init__(self, file: BinaryIO, max_reads: int = MAX_READS) -> None:
        self._file = file
        self._left = max_reads
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Like a file's. Raises Refused `oversized` at one read too many."""
        self._left -= 1
        if self._left < 0:
            raise Refused(Reason.OVERSIZED, "header of too many elements")
        return self._file.read(size)


def opened(file: BinaryIO, max_bytes: int) -> BinaryIO:
    """``file`` itself, or what a deflated one holds, named as Explicit VR Little Endian.

    Raises Refused `oversized` if either exceeds the limit; not more than the limit is inflated.
    """
    if os.fstat(file.fileno()).st_size > max_bytes:
        raise Refused(Reason.OVERSIZED, f"file over {max_bytes} bytes")
    head = file.read(1024)
    file.seek(0)
    if head[128:132] != b"DICM" or DEFLATED not in head:
        return file
    (length,) = struct.unpack("<L", head[140:144])  # of the group 0002, which is not deflated
    meta = file.read(144 + length).replace(DEFLATED, EXPLICIT.ljust(len(DEFLATED), b"\0"))
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflate.decompress(file.read(), max_bytes)
    if inflate.unconsumed_tail:
        raise Refused(Reason.OVERSIZED, f"inflates to over {max_bytes} bytes")
    return io.BytesIO(meta + content)


def check_claim(decoded_bytes: int, encoded_bytes: int) -> None:
    """Raise Refused `oversized` if so few bytes cannot hold so many pixels."""
    if decoded_bytes > MAX_COMPRESSION * encoded_bytes:
        raise Refused(
            Reason.OVERSIZED, f"claims {decoded_bytes} bytes of pixels in {encoded_bytes}"
        )


def check_volume(shape: tuple[int, ...], max_bytes: int) -> None:
    """Raise Refused `oversized` if an int16 volume of ``shape`` exceeds the limit."""
    size = 2
    for length in shape:
        size *= length
    if size > max_bytes:
        raise Refused(Reason.OVERSIZED, f"{size} bytes once decoded")


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 code stream claims; None if it is neither.

    T.81 B.2.2 and T.87 C.2.2 (start of frame), T.800 A.5.1 (SIZ).
    """
    start = frame.find(b"\xff\x4f\xff\x51", 0, 1024)
    if start >= 0 and len(frame) >= start + 24:
        width, height, left, top = struct.unpack(">4L", frame[start + 8 : start + 24])
        return height - top, width - left
    position = 2
    while frame[:2] == b"\xff\xd8" and position + 9 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in JPEG_FRAMES:
            rows, columns = struct.unpack(">2H", frame[position + 5 : position + 9])
            return rows, columns
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        (length,) = struct.unpack(">H", frame[position + 2 : position + 4])
        position += 2 + length
    return None
