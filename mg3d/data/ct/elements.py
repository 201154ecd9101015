"""The elements of a DICOM header, without recursion: sequences are skipped, and never too deep.

pydicom descends into a sequence of undefined length by recursion, wanted or not. So its depth is
checked here first. Headers in little endian, which most are, are read here altogether: only the
wanted elements become values, and pydicom converts those.
"""

import struct
from collections.abc import Set
from functools import lru_cache
from typing import Any, Protocol

from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.dataelem import (
    DataElement,
    RawDataElement,
    convert_raw_data_element,
    empty_value_for_VR,
)
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.valuerep import AMBIGUOUS_VR, EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from mg3d.data.ct.refused import Refused
from mg3d.ledger import Reason

MAX_DEPTH = 64  # sequences in sequences; enhanced CT has 3, structured reports some 20
UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_DATA = {0x7FE00008, 0x7FE00009, 0x7FE00010}  # float, double, and the usual
ITEM_END, SEQUENCE_END = 0xFFFEE00D, 0xFFFEE0DD
CHARACTER_SET, TRANSFER_SYNTAX = BaseTag(0x00080005), BaseTag(0x00020010)
LONG = {vr.encode() for vr in EXPLICIT_VR_LENGTH_32}  # two reserved bytes, a length of four
SHORT = {vr.encode() for vr in EXPLICIT_VR_LENGTH_16}
FRAGMENTED = {b"OB", b"OW"}  # of undefined length: encapsulated pixels, no data sets
ITEM = b"\xfe\xff\x00\xe0"
IMPLICIT, EXPLICIT = struct.Struct("<HHL"), struct.Struct("<HH2sH")
LENGTH = struct.Struct("<L")


class Readable(Protocol):
    """What is asked of a file."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


def read_elements(file: Readable, wanted: Set[int]) -> Dataset:
    """The ``wanted`` elements before the pixels, where the file is left.

    Raises Refused `nested_too_deep`, and whatever pydicom does on arbitrary bytes.
    """
    found = _read_little_endian(file, wanted)
    if found is not None:
        return found
    file.seek(0)

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag in PIXEL_DATA:
            return True
        start = file.tell()
        little = {ITEM: True, b"\xff\xfe\xe0\x00": False}.get(file.read(4))
        file.seek(start)
        if little is not None and (length == UNDEFINED_LENGTH or tag in wanted):
            skip_sequence(file, vr is None, length, little)
            file.seek(start)
        return False

    return read_partial(file, stop, force=True, specific_tags=list(wanted))  # type: ignore[arg-type]


def _read_little_endian(file: Readable, wanted: Set[int]) -> Dataset | None:
    """`read_elements` of a file with preamble and syntax, in little endian; None of any other."""
    if file.read(132)[128:] != b"DICM":
        return None
    read, seek = file.read, file.seek
    meta: dict[BaseTag, Any] = {}
    values: dict[BaseTag, Any] = {}
    into, is_implicit = meta, False
    while len(head := read(8)) == 8:
        vr, size = head[4:6], 8
        if into is meta and head[:2] != b"\2\0":  # the first one behind the file meta elements
            syntax = meta.get(TRANSFER_SYNTAX)
            syntax = None if syntax is None else syntax.value.rstrip(b"\0 ").decode("latin1")
            is_implicit = syntax == ImplicitVRLittleEndian
            if syntax in (None, ExplicitVRBigEndian) or is_implicit == (b"AA" <= vr <= b"ZZ"):
                return None
            into = values
        if is_implicit:
            group, number, length = IMPLICIT.unpack(head)
            vr = b""
        else:
            group, number, vr, length = EXPLICIT.unpack(head)
            if vr in LONG:
                size = 12
                (length,) = LENGTH.unpack(read(4))
            elif vr not in SHORT:
                return None
        tag = group << 16 | number
        if tag in PIXEL_DATA:
            seek(-size, 1)
            break
        is_wanted = tag in wanted or tag == CHARACTER_SET or into is meta
        if length == UNDEFINED_LENGTH:
            if is_wanted or vr not in (b"SQ", b""):
                return None
            skip_sequence(file, is_implicit)
        elif is_wanted:
            value: Any = read(length)
            if len(value) < length or value[:4] == ITEM:  # a sequence, which pydicom may read
                return None
            vr_name = vr.decode() or None
            value = value or empty_value_for_VR(vr_name, raw=True)
            into[BaseTag(tag)] = RawDataElement(
                *(BaseTag(tag), vr_name, length, value, 0, is_implicit, True)
            )
        else:
            seek(length, 1)
    charset = values.get(CHARACTER_SET)
    name: Any = None if charset is None else _converted(charset, ()).value
    encodings = convert_encodings(name)
    data = Dataset({tag: _converted(raw, tuple(encodings)) for tag, raw in values.items()})
    data.set_original_encoding(is_implicit, True, encodings)
    data.file_meta = FileMetaDataset(meta)
    return data


@lru_cache(maxsize=1024)
def _converted(raw: RawDataElement, encodings: tuple[str, ...]) -> DataElement | RawDataElement:
    """Shared by the slices of a series, which differ in few elements.

    As it was if it cannot be converted, or not without other elements: who asks for it, converts.
    """
    try:
        element = convert_raw_data_element(raw, encoding=list(encodings) or None)
    except Exception:  # of arbitrary bytes
        return raw
    return raw if element.VR in AMBIGUOUS_VR else element


def skip_sequence(
    file: Readable, is_implicit: bool, length: int = UNDEFINED_LENGTH, is_little: bool = True
) -> None:
    """Move ``file`` from the first item of a sequence of ``length`` bytes behind its end.

    Follows pydicom: what is of undefined length is a sequence unless it holds fragments, and the
    first VR of an item says whether it is implicit (PS3.5 6.2.2). Raises Refused `nested_too_deep`.
    """
    order = "<" if is_little else ">"
    implicit, explicit = struct.Struct(order + "HHL"), struct.Struct(order + "HH2sH")
    long, item = struct.Struct(order + "L"), struct.pack(order + "HH", 0xFFFE, 0xE000)
    read, seek, tell = file.read, file.seek, file.tell

    def ahead(size: int) -> bytes:
        start = tell()
        content = read(size)
        seek(start)
        return content

    # (what it is, where it ends if that is known, whether implicit)
    nest = [("sequence", None if length == UNDEFINED_LENGTH else tell() + length, is_implicit)]
    while nest:
        kind, end, is_implicit = nest[-1]
        if end is not None and tell() >= end:
            nest.pop()
            continue
        if len(head := read(8)) < 8:
            return
        group, number, length = implicit.unpack(head)
        if group << 16 | number == (ITEM_END if kind == "item" else SEQUENCE_END):
            nest.pop()
            continue
        vr = b""
        if kind == "item" and not is_implicit and b"AA" <= head[4:6] <= b"ZZ":
            *_, vr, length = explicit.unpack(head)
            if vr in LONG:
                if len(content := read(4)) < 4:
                    return
                (length,) = long.unpack(content)
        ends = None if length == UNDEFINED_LENGTH else tell() + length
        if kind == "sequence":
            first = ahead(6)[4:]
            is_implicit = is_implicit or not (first.isalpha() and first.isupper())
            nest.append(("item", ends, is_implicit))
        elif kind == "fragments" or (ends is not None and ahead(4) != item):
            seek(length, 1)
        else:
            nest.append(("fragments" if vr in FRAGMENTED else "sequence", ends, is_implicit))
            if len(nest) > 2 * MAX_DEPTH:
                raise Refused(Reason.NESTED_TOO_DEEP, f"over {MAX_DEPTH} sequences in sequences")
