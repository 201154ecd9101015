"""Bombs, deep nesting and links: refused with a reason, in little time and memory."""

import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from data.converters import convert_dicom, reasons
from mg3d.data.ct import limits
from mg3d.data.ct.header import read_header
from mg3d.data.ct.refused import Refused
from mg3d.ledger import Reason
from mg3d.params import DicomVolumes

PARAMS = DicomVolumes(min_slices=4, max_series_bytes=2**22)
Write = Callable[..., list[Path]]


def refuse(path: Path) -> Refused:
    """How a header is refused: within 16 MiB and two seconds of CPU time."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(Refused) as caught:
            read_header(path, PARAMS)
        assert time.process_time() - start < 2
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    return caught.value


def test_a_deflated_bomb_is_not_inflated(
    tmp_path: Path, write_series: Write, encode_slice: Callable
) -> None:
    path = write_series(tmp_path)[0]
    encode_slice(path, "DeflatedExplicitVRLittleEndian")
    assert read_header(path, PARAMS).position is not None
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(squeeze.compress(bytes(2**20)) for _ in range(256)) + squeeze.flush()
    path.write_bytes(content[:start] + bomb)
    assert len(bomb) < 2**19
    refused = refuse(path)
    assert (refused.reason, refused.detail) == (Reason.OVERSIZED, "inflates to over 4194304 bytes")


def test_a_header_of_millions_of_elements_is_not_parsed_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits.Bounded.__init__, "__defaults__", (10_000,))
    (tmp_path / "zeros").write_bytes(bytes(128) + b"DICM" + bytes(2**21))
    assert refuse(tmp_path / "zeros").detail == "header of too many elements"


def test_a_claim_of_pixels_that_the_file_cannot_hold_is_refused(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    path = write_series(tmp_path)[0]
    edit_slice(path, Rows=65535, Columns=65535)
    assert refuse(path).reason is Reason.OVERSIZED


def test_a_file_over_the_limit_is_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**22 + 1)
    assert refuse(tmp_path / "large").detail == "file over 4194304 bytes"


def test_a_series_over_the_limit_is_not_decoded(
    tmp_path: Path, write_series: Write, encode_slice: Callable
) -> None:
    """Twelve small files of zeros that would be 6 MiB of HU."""
    files = write_series(tmp_path / "dicom", hu=np.zeros((12, 512, 512)))
    for path in files:
        encode_slice(path, "RLELossless")
    write_series(tmp_path / "dicom", uid="2.1", study="2", patient="P2", prefix="good-")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"used": 8, "oversized": 12}


def nested(depth: int) -> Dataset:
    """A data set in a data set, ``depth`` times."""
    inner = Dataset()
    for _ in range(depth):
        outer = Dataset()
        outer.RequestAttributesSequence = [inner]
        outer["RequestAttributesSequence"].is_undefined_length = True
        inner = outer
    return inner


def test_sequences_nested_too_deep_are_refused(tmp_path: Path, write_series: Write) -> None:
    path = write_series(tmp_path)[0]
    data = pydicom.dcmread(path)
    data.RequestAttributesSequence = nested(20).RequestAttributesSequence
    data["RequestAttributesSequence"].is_undefined_length = True
    data.save_as(path)
    assert read_header(path, PARAMS).position is not None
    content = path.read_bytes()
    # an explicit SQ of undefined length and an item of undefined length, again and again
    opening = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    start = content.index(opening[:6])
    path.write_bytes(content[:start] + opening * 10_000 + content[start:])
    assert refuse(path).reason is Reason.NESTED_TOO_DEEP


def test_links_out_of_the_folder_are_refused_and_counted(
    tmp_path: Path, write_series: Write
) -> None:
    outside = write_series(tmp_path / "elsewhere", uid="2.1", study="2", patient="P2")
    inside = write_series(tmp_path / "dicom/a/b")
    (tmp_path / "dicom/link").symlink_to(outside[0])
    (tmp_path / "dicom/up").symlink_to("../elsewhere/" + outside[1].name)
    (tmp_path / "dicom/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dicom/circle").symlink_to(tmp_path / "dicom")
    (tmp_path / "dicom/broken").symlink_to("nowhere")
    (tmp_path / "dicom/same").symlink_to(inside[0])  # stays inside: a second copy
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"used": 8, "unsafe_path": 5, "duplicate_file": 1}


def test_a_directory_file_that_names_files_elsewhere_is_not_followed(
    tmp_path: Path, write_series: Write
) -> None:
    """DICOMDIR lists files by name; ours are those that lie in the folder."""
    write_series(tmp_path / "elsewhere", uid="2.1", study="2", patient="P2")
    path = write_series(tmp_path / "dicom")[0]
    data = pydicom.dcmread(path)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    del data.SeriesInstanceUID, data.PixelData
    record = Dataset()
    record.ReferencedFileID = ["..", "ELSEWHERE", "000.BIN"]
    data.DirectoryRecordSequence = [record]
    data.save_as(tmp_path / "dicom/DICOMDIR")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"used": 8, "not_ct": 1}
