"""Search stores, logs and databases for values that identify a patient, however they are packed.

``python tests/canary.py DATA STORE ...`` takes the identifiers of a cohort (``DATA/dicom``,
``DATA/reports.csv``) and looks for them in every file under the stores; it prints where it found
which kind, never the value, and exits with 1 if there is any.

A file is looked at as it lies on disk, and as what it holds: gzip, zlib, bz2 and xz streams,
members of zip and tar files, rows of sqlite databases, columns of Parquet files, base64 (wrapped or
not, at any alignment), each of these in each other, eight deep. Values are looked for regardless of
the case of ASCII letters, as UTF-8, Latin-1, UTF-16, hexadecimal, JSON- and percent-encoded. Not
opened: zstd, encryption, pixels.
"""

import base64
import bz2
import csv
import io
import json
import lzma
import re
import sqlite3
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pydicom
import pydicom.config

MAX_DEPTH = 8
MAX_BYTES = 2**28  # of one unpacked stream
_BLOCK_BYTES = 2**24
_STEP_BYTES = 2**12
MIN_CHARACTERS = 6  # shorter ones are found by accident in binary files
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}(?:\r?\n[A-Za-z0-9+/_-]+)*")
_STREAM = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]|BZh[1-9]1AY&SY|\xfd7zXZ\x00")
_NAMES = {"PatientName", "ReferringPhysicianName", "OperatorsName"}
_WORDS = {"Person"}  # parts of names that are also words of any software; the whole name counts
_DATES = {"PatientBirthDate"}
_IDS = {
    *("PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
    *("OtherPatientIDs", "PatientAddress", "PatientTelephoneNumbers", "DeviceSerialNumber"),
}


class Find(NamedTuple):
    """Where a value was found: the file, how it was packed (outermost first), what it is."""

    path: Path
    packing: tuple[str, ...]
    kind: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}, {' in '.join(reversed(self.packing)) or 'raw'}"


def identifiers(data: Path) -> dict[str, str]:
    """Identifying values of an export; of each, what it is (PatientName, AccessionNumber ...)."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    found: dict[str, str] = {}
    for file in sorted(path for path in (data / "dicom").rglob("*") if path.is_file()):
        try:
            header = pydicom.dcmread(file, specific_tags=sorted(_NAMES | _DATES | _IDS))
        except Exception:  # the export holds broken files on purpose
            continue
        for element in header:
            values = [element.value] if element.VM == 1 else list(element.value or [])
            for value in map(str, values):
                if element.keyword in _NAMES:
                    found |= dict.fromkeys(_spellings(value), element.keyword)
                elif element.keyword in _DATES and len(value) == 8:
                    year, month, day = value[:4], value[4:6], value[6:]
                    dates = (value, f"{year}-{month}-{day}", f"{day}.{month}.{year}")
                    found |= dict.fromkeys(dates, element.keyword)
                elif element.keyword in _IDS:
                    found[value] = element.keyword
    with (data / "reports.csv").open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            found |= dict.fromkeys(_spellings(row.get("PatientName", "")), "PatientName")
            found |= {row[key]: key for key in ("AccessionNumber", "PatientID") if row.get(key)}
    return {value: kind for value, kind in found.items() if len(value) >= MIN_CHARACTERS}


def search(roots: Iterable[Path], values: Mapping[str, str]) -> list[Find]:
    """Every (file, packing, kind) under ``roots`` in which a value occurs, file names included."""
    needles = _Needles(values)
    finds: set[Find] = set()
    for root in roots:
        files = [root] if root.is_file() else sorted(root.rglob("*"))
        for path in files:
            for kind in needles.kinds_in(str(path.relative_to(root.parent)).encode()):
                finds.add(Find(path, ("file name",), kind))
            if path.is_file() and not path.is_symlink():
                for packing, content in _views(path.read_bytes()):
                    finds |= {Find(path, packing, kind) for kind in needles.kinds_in(content)}
    return sorted(finds)


class _Needles:
    """Many byte strings, looked for at once: three table look-ups a byte, then a comparison."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.kinds = {
            needle: kind for value, kind in values.items() for needle in _encodings(value)
        }
        assert self.kinds, "nothing to look for"
        self.by_head: dict[bytes, list[bytes]] = {}
        self.tables = [np.zeros(2**16, bool) for _ in range(3)]
        for needle in self.kinds:
            self.by_head.setdefault(needle[:MIN_CHARACTERS], []).append(needle)
            for part, table in enumerate(self.tables):
                table[int.from_bytes(needle[2 * part : 2 * part + 2], "little")] = True

    def kinds_in(self, content: bytes) -> set[str]:
        """Kinds of the values that occur in ``content``."""
        content = content.lower()
        starts = range(0, max(1, len(content) - MIN_CHARACTERS + 1), _BLOCK_BYTES)
        likely = (place for start in starts for place in self._likely(content, start))
        return {
            self.kinds[needle]
            for place in likely
            for needle in self.by_head.get(content[place : place + MIN_CHARACTERS], ())
            if content.startswith(needle, place) and _is_whole(content, place, needle)
        }

    def _likely(self, content: bytes, start: int) -> list[int]:
        """Places in one block where each of three byte pairs begins some needle alike."""
        block = content[start : start + _BLOCK_BYTES + MIN_CHARACTERS - 1]
        if len(block) < MIN_CHARACTERS:
            return []
        one_byte = np.frombuffer(block, np.uint8).astype(np.uint16)
        pairs = one_byte[:-1] | (one_byte[1:] << 8)
        size = len(pairs) - 4
        likely = self.tables[0][pairs[:size]]
        likely &= self.tables[1][pairs[2 : size + 2]]
        likely &= self.tables[2][pairs[4 : size + 4]]
        return [start + place for place in np.flatnonzero(likely).tolist()]


def _spellings(name: str) -> list[str]:
    """A person's name as a header, a table and a sentence write it, and its longer parts."""
    parts = [part for part in re.split(r"[\^=, ]+", name) if part]
    whole = [joint.join(order) for order in (parts, parts[::-1]) for joint in ("^", ", ", " ")]
    alone = [part for part in parts if part not in _WORDS]
    return [*alone, *(whole if len(parts) > 1 else [])]


def _encodings(value: str) -> set[bytes]:
    plain = value.encode()
    spelt = {plain, json.dumps(value)[1:-1].encode(), quote(value).encode(), plain.hex().encode()}
    spelt |= {value.encode("utf-16-le"), value.encode("utf-16-be")}
    spelt |= {value.encode("latin-1", errors="ignore")} if value.isprintable() else set()
    return {encoded.lower() for encoded in spelt if len(encoded) >= MIN_CHARACTERS}


def _is_whole(content: bytes, start: int, needle: bytes) -> bool:
    """Digits within a longer number, a fraction or a digest are none of ours.

    Voxels of 16 bits are digits of UTF-16 at 48 to 57 HU, and then seldom just as many.
    """
    if not needle.replace(b"\0", b"").isdigit():
        return True
    step = 2 if b"\0" in needle else 1
    end = start + len(needle)
    before = content[max(0, start - step) : start].strip(b"\0")
    after = content[end : end + step].strip(b"\0")
    return not re.search(rb"[0-9a-f]", before + after) and before != b"."


def _views(
    content: bytes, packing: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """``content`` and, recursively, whatever is packed in it."""
    yield packing, content
    if len(packing) == MAX_DEPTH:
        return
    for how, inner in _unpacked(content):
        if inner and inner != content:
            yield from _views(inner, (*packing, how))


def _unpacked(content: bytes) -> Iterator[tuple[str, bytes]]:
    if content.startswith(b"SQLite format 3\x00"):
        yield "sqlite", _sqlite(content)
    if content.startswith(b"PAR1"):
        yield "parquet", _parquet(content)
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield "zip", name.encode() + b"\n" + archive.read(name)
    if content[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                extracted = tar.extractfile(member)
                assert extracted is not None
                yield "tar", member.name.encode() + b"\n" + extracted.read()
    for match in _STREAM.finditer(content):
        yield from _stream(memoryview(content)[match.start() :], match[0])
    runs = [re.sub(rb"[\r\n]", b"", run).translate(_URL_SAFE) for run in _BASE64.findall(content)]
    for offset in range(4 if runs else 0):
        decoded = []
        for run in runs:
            body = run[offset:]
            with_padding = body[: len(body) - (len(body) % 4 == 1)]
            with_padding += b"=" * (-len(with_padding) % 4)
            decoded.append(base64.b64decode(with_padding))
        yield "base64", b"\n".join(decoded)


_URL_SAFE = bytes.maketrans(b"-_", b"+/")


_DECOMPRESSORS: dict[bytes, tuple[str, Callable[[], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda: zlib.decompressobj(31)),
    b"BZ": ("bz2", bz2.BZ2Decompressor),
    b"\xfd7": ("xz", lzma.LZMADecompressor),
}
_ZLIB = ("zlib", zlib.decompressobj)


def _stream(content: memoryview, magic: bytes) -> Iterator[tuple[str, bytes]]:
    """What a stream that starts here holds, as far as it can be read.

    By small steps: most places that look like the beginning of one are none, and a decompressor
    copies what it does not use.
    """
    how, decompressor = _DECOMPRESSORS.get(magic[:2], _ZLIB)
    reader = decompressor()
    parts: list[bytes] = []
    num_bytes = 0
    for start in range(0, len(content), _STEP_BYTES):
        try:
            parts.append(reader.decompress(content[start : start + _STEP_BYTES]))
        except (zlib.error, OSError, lzma.LZMAError):
            break
        num_bytes += len(parts[-1])
        if reader.eof or num_bytes > MAX_BYTES:
            break
    yield how, b"".join(parts)


def _sqlite(content: bytes) -> bytes:
    """All cells: a value that spills over pages is not in one piece on disk."""
    database = sqlite3.connect(":memory:")
    try:
        # write-ahead logging, said in bytes 18 and 19, does not go with a database in memory
        database.deserialize(content[:18] + b"\x01\x01" + content[20:])
        database.text_factory = bytes
        tables = [
            name.decode()
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        rows = (row for name in tables for row in database.execute(f'SELECT * FROM "{name}"'))
        cells = (cell for row in rows for cell in row if cell is not None)
        return b"\n".join(c if isinstance(c, bytes) else str(c).encode() for c in cells)
    except sqlite3.DatabaseError:
        return b""  # a copy of a piece of one; its bytes were searched
    finally:
        database.close()


def _parquet(content: bytes) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content))
    except pa.ArrowInvalid:
        return b""
    return "\n".join(
        str(cell) for name in table.column_names for cell in table[name].to_pylist()
    ).encode()


def main(arguments: Sequence[str]) -> int:
    """Print what is found; 1 if there is anything."""
    data, *stores = map(Path, arguments)
    values = identifiers(data)
    finds = search(stores, values)
    print(*finds, sep="\n")
    print(f"{len(values)} identifying values of {data}: found in {len(finds)} places")
    return int(bool(finds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
