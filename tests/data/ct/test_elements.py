"""Headers read without recursion: what pydicom reads, and no depth that it could not."""

import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from mg3d.data.ct.elements import MAX_DEPTH, read_elements
from mg3d.data.ct.header import WANTED, read_header
from mg3d.data.ct.refused import Refused
from mg3d.ledger import Reason

Write = Callable[..., list[Path]]
BUNDLED = sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm"))
PIXELS = {(0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010)}
SEQUENCE = 0x00400275  # RequestAttributesSequence
HEAD = struct.pack("<HH", SEQUENCE >> 16, SEQUENCE & 0xFFFF)
ITEM, ITEM_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0" + bytes(4)
SEQUENCE_END = b"\xfe\xff\xdd\xe0" + bytes(4)
UNDEFINED = b"\xff" * 4


def test_wanted_elements_are_those_of_pydicom() -> None:
    """In every file that pydicom brings: vendors, syntaxes, character sets, broken ones."""
    assert len(BUNDLED) > 50
    for path in BUNDLED:
        theirs = pydicom.dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=sorted(WANTED)
        )
        if theirs.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            continue  # inflated before it gets here
        with path.open("rb") as file:
            ours = read_elements(file, WANTED)
            at_pixels = file.tell()
        assert set(ours.keys()) == set(theirs.keys()), path.name
        assert ours == theirs, path.name
        assert ours.original_encoding == theirs.original_encoding, path.name
        syntaxes = [data.file_meta.get("TransferSyntaxUID") for data in (ours, theirs)]
        assert syntaxes[0] == syntaxes[1], path.name
        order = "<HH" if ours.original_encoding[1] else ">HH"
        head = path.read_bytes()[at_pixels : at_pixels + 4]
        assert len(head) < 4 or struct.unpack(order, head) in PIXELS, path.name


def nest(depth: int, implicit: bool, defined: bool) -> bytes:
    """A sequence in a sequence, ``depth`` times."""
    content = b""
    for _ in range(depth):
        if defined:
            item = ITEM + struct.pack("<L", len(content)) + content
            length = struct.pack("<L", len(item))
        else:
            item = ITEM + UNDEFINED + content + ITEM_END + SEQUENCE_END
            length = UNDEFINED
        content = HEAD + (b"" if implicit else b"SQ\0\0") + length + item
    return content


def insert(path: Path, content: bytes, implicit: bool = False) -> None:
    """Put elements before the pixels of a slice."""
    data = pydicom.dcmread(path)
    if implicit:
        data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        data.save_as(path, implicit_vr=True, little_endian=True)
    stored = path.read_bytes()
    start = stored.rindex(b"\xe0\x7f\x10\x00")
    path.write_bytes(stored[:start] + content + stored[start:])


@pytest.mark.parametrize("implicit", [False, True])
def test_five_thousand_nested_sequences_are_refused_whatever_python_can_do(
    implicit: bool, tmp_path: Path, write_series: Write
) -> None:
    path = write_series(tmp_path)[0]
    insert(path, nest(5000, implicit, defined=False), implicit)
    usual = sys.getrecursionlimit()
    for limit in (usual, 100_000):
        sys.setrecursionlimit(limit)
        try:
            start = time.process_time()
            with pytest.raises(Refused, match=f"over {MAX_DEPTH} sequences") as caught:
                read_header(path)
            assert time.process_time() - start < 1
        finally:
            sys.setrecursionlimit(usual)
        assert caught.value.reason is Reason.NESTED_TOO_DEEP


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("defined", [False, True])
def test_sequences_that_are_not_too_deep_change_nothing(
    implicit: bool, defined: bool, tmp_path: Path, write_series: Write
) -> None:
    path = write_series(tmp_path)[0]
    insert(path, b"", implicit)
    before = read_header(path)
    insert(path, nest(MAX_DEPTH - 1, implicit, defined), implicit)
    after = read_header(path)
    assert (after.position, after.orientation, after.study) == (
        *(before.position, before.orientation, before.study),
    )
    assert after.complete
    assert pydicom.dcmread(path).RequestAttributesSequence[0].RequestAttributesSequence


def test_groups_of_a_multi_frame_file_are_not_deep_either(
    tmp_path: Path, write_series: Write, merge_slices: Callable
) -> None:
    """Lengths are defined, so pydicom would descend only later, when the groups are looked at."""
    merged = merge_slices(write_series(tmp_path), tmp_path / "merged")
    data = pydicom.dcmread(merged)
    inner = Dataset()
    for _ in range(200):
        outer = Dataset()
        outer.PlanePositionSequence = [inner]
        inner = outer
    data.SharedFunctionalGroupsSequence[0].PlanePositionSequence = [inner]
    data.save_as(merged)
    with pytest.raises(Refused, match="nested_too_deep"):
        read_header(merged)


def test_fragments_are_no_data_sets(tmp_path: Path, write_series: Write) -> None:
    """An icon's encapsulated pixels look like items; their bytes are no elements."""
    path = write_series(tmp_path)[0]
    pixels = struct.pack("<HH", 0x7FE0, 0x10) + b"OB\0\0" + UNDEFINED + ITEM + struct.pack("<L", 16)
    pixels += ITEM + UNDEFINED + ITEM + UNDEFINED + SEQUENCE_END
    icon = struct.pack("<HH", 0x0088, 0x0200) + b"SQ\0\0" + UNDEFINED + ITEM + UNDEFINED
    insert(path, icon + pixels + ITEM_END + SEQUENCE_END)
    header = read_header(path)
    assert header.complete
    assert header.native is not None
