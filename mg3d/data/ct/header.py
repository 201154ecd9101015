"""What the header of one DICOM file says, without its pixels."""

import math
import struct
from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.config import disable_value_validation
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mg3d.data.ct.elements import UNDEFINED_LENGTH, read_elements
from mg3d.data.ct.frames import GROUPS, frames_of
from mg3d.data.ct.limits import Bounded, check_claim, opened
from mg3d.data.ct.refused import Refused
from mg3d.ledger import Reason
from mg3d.params import DicomVolumes

SEQUENCE_END = (0xFFFE, 0xE0DD)
PIXEL_DATA = (0x7FE0, 0x0010)
DEFAULTS = DicomVolumes()


@dataclass(frozen=True)
class Native:
    """Where uncompressed pixels of 16 bits lie in a file, and what their bits mean."""

    offset: int
    dtype: str
    bits_stored: int
    padding: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What the header of one file says; None where a tag is absent or malformed. Lengths in mm.

    A multi-frame file has one in ``frames`` for each of its frames.
    """

    path: Path
    sop_class: str
    series: str | None
    study: str | None
    patient: str | None
    accession: str
    instance: str | None
    image_type: tuple[str, ...]
    size: tuple[int, int] | None  # rows, columns
    spacing: tuple[float, ...] | None  # between rows, between columns
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None  # along a row, then along a column
    rescale: tuple[float, ...] | None
    acquisition: int | None  # AcquisitionNumber
    number: int | None  # InstanceNumber; orders nothing but repeated acquisitions
    burned_in: bool  # BurnedInAnnotation: text in the pixels
    complete: bool  # the pixel data is as long as it claims
    native: Native | None = None  # of a single slice that needs no decoder
    frame: int | None = None  # counted from 0, of a multi-frame file
    frames: tuple["Header", ...] = ()

    @property
    def slices(self) -> tuple["Header", ...]:
        """The frames of a multi-frame file, or the file itself."""
        return self.frames or (self,)


TAGS: dict[str, str] = {
    "SeriesInstanceUID": "series",
    "StudyInstanceUID": "study",
    "PatientID": "patient",
    "Rows, Columns": "size",
    "PixelSpacing": "spacing",
    "ImagePositionPatient": "position",
    "ImageOrientationPatient": "orientation",
    "RescaleSlope, RescaleIntercept": "rescale",
}
READ_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "AccessionNumber", "ImageType", "BurnedInAnnotation"),
    *("AcquisitionNumber", "InstanceNumber", "NumberOfFrames", *GROUPS),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *(name for names in TAGS for name in names.split(", ")),
]
WANTED = {tag for name in READ_TAGS if (tag := tag_for_keyword(name)) is not None}


@disable_value_validation()  # its warnings quote the values, which may be a patient's
def read_header(path: Path, params: DicomVolumes = DEFAULTS) -> Header:
    """Header of one DICOM file, without its pixels.

    Raises Refused: `not_dicom`, `oversized`, `nested_too_deep`, or `truncated` when not even the
    class of the object can be read.
    """
    with path.open("rb") as stored:
        file = opened(stored, params.max_series_bytes)
        has_preamble = file.read(132)[128:] == b"DICM"
        file.seek(0)
        try:
            data = read_elements(Bounded(file), WANTED)
            # Objects without a preamble predate the file format; force also "reads" a text file.
            sop_class = str(data.get("SOPClassUID") or "")
            if not has_preamble and not (sop_class and data.get("SOPInstanceUID")):
                raise Refused(Reason.NOT_DICOM)
            if not sop_class and data.file_meta.get("MediaStorageSOPClassUID"):
                sop_class = str(data.file_meta.MediaStorageSOPClassUID)
            start = file.tell()
            header = _header(path, data, sop_class, _has_all_pixels(file, data))
            if file is stored and header.complete:
                header = replace(header, native=_native(file, start, data))
        except Refused:
            raise
        except Exception as error:  # the parser meets arbitrary bytes
            reason = Reason.TRUNCATED if has_preamble else Reason.NOT_DICOM
            raise Refused(reason, type(error).__name__) from None
    if not sop_class:
        raise Refused(Reason.TRUNCATED, "ends before SOPClassUID")
    frames, bits = _integer(data, "NumberOfFrames") or 1, _integer(data, "BitsAllocated") or 16
    if header.size is not None and "TransferSyntaxUID" in data.file_meta:
        rows, columns = header.size
        check_claim(rows * columns * max(frames, 1) * bits // 8, path.stat().st_size)
    return header


def _header(path: Path, data: pydicom.Dataset, sop_class: str, complete: bool) -> Header:
    header = Header(
        path=path,
        sop_class=sop_class,
        series=_text(data, "SeriesInstanceUID"),
        study=_text(data, "StudyInstanceUID"),
        patient=_text(data, "PatientID"),
        accession=_text(data, "AccessionNumber") or "",
        instance=_text(data, "SOPInstanceUID"),
        image_type=tuple(_strings(data.get("ImageType"))),
        size=_size(data),
        spacing=_numbers(data, 2, "PixelSpacing"),
        position=_numbers(data, 3, "ImagePositionPatient"),
        orientation=_numbers(data, 6, "ImageOrientationPatient"),
        rescale=_numbers(data, 2, "RescaleSlope", "RescaleIntercept"),
        acquisition=_integer(data, "AcquisitionNumber"),
        number=_integer(data, "InstanceNumber"),
        burned_in=(_text(data, "BurnedInAnnotation") or "").upper() == "YES",
        complete=complete,
    )
    frames = tuple(
        replace(
            header,
            frame=index,
            image_type=tuple(_strings(frame.get("FrameType"))) or header.image_type,
            spacing=_numbers(frame, 2, "PixelSpacing"),
            position=_numbers(frame, 3, "ImagePositionPatient"),
            orientation=_numbers(frame, 6, "ImageOrientationPatient"),
            rescale=_numbers(frame, 2, "RescaleSlope", "RescaleIntercept"),
            acquisition=_integer(frame, "FrameAcquisitionNumber"),
            number=index,
        )
        for index, frame in enumerate(frames_of(data))
    )
    return replace(header, frames=frames)


def _text(data: pydicom.Dataset, name: str) -> str | None:
    return str(data.get(name) or "").strip() or None


def _strings(value: Any) -> Iterable[str]:
    values = [value] if isinstance(value, str) else value or []
    return (str(part).upper() for part in values)


def _numbers(data: pydicom.Dataset, length: int, *names: str) -> tuple[float, ...] | None:
    try:
        values = [data[name].value for name in names]
        flat = [part for value in values for part in (value if _is_list(value) else [value])]
        numbers = tuple(float(part) for part in flat)
    except (KeyError, TypeError, ValueError):
        return None
    return numbers if len(numbers) == length and all(map(math.isfinite, numbers)) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, MutableSequence)


def _integer(data: pydicom.Dataset, name: str) -> int | None:
    values = _numbers(data, 1, name)
    return None if values is None else int(values[0])


def _size(data: pydicom.Dataset) -> tuple[int, int] | None:
    size = _numbers(data, 2, "Rows", "Columns")
    return None if size is None else (int(size[0]), int(size[1]))


def padding_of(data: pydicom.Dataset) -> tuple[int, ...]:
    """PixelPaddingValue, and the range's limit if there is one (PS3.3 C.7.5.1.1.2)."""
    ends = [data.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    return tuple(end for end in ends if isinstance(end, int)) if isinstance(ends[0], int) else ()


def _native(file: BinaryIO, start: int, data: pydicom.Dataset) -> Native | None:
    """How to read the PixelData element at ``start`` without a decoder; None if it needs one."""
    implicit, little = data.original_encoding
    if (
        data.file_meta.get("TransferSyntaxUID")
        not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
        or not little
        or data.get("BitsAllocated") != 16
        or data.get("SamplesPerPixel") != 1
        or data.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2")
        or data.get("PixelRepresentation") not in (0, 1)
        or data.get("NumberOfFrames", 1) != 1
        or data.get("HighBit", data.get("BitsStored", 0) - 1) != data.get("BitsStored", 0) - 1
        or not 1 <= data.get("BitsStored", 0) <= 16
    ):
        return None
    file.seek(start)
    content = file.read(8 if implicit else 12)
    *tag, length = struct.unpack("<HHL" if implicit else "<HH4xL", content)
    if tuple(tag) != PIXEL_DATA or length != data.Rows * data.Columns * 2:
        return None
    dtype = "<i2" if data.PixelRepresentation else "<u2"
    return Native(start + len(content), dtype, data.BitsStored, padding_of(data))


def _has_all_pixels(file: BinaryIO, data: pydicom.Dataset) -> bool:
    """Whether the PixelData element at the file's position is as long as it claims.

    The position is where `stop_before_pixels` left it.
    """
    implicit, little = data.original_encoding
    order = "<" if little else ">"
    head = struct.Struct(order + ("HHL" if implicit else "HH4xL"))
    item = struct.Struct(order + "HHL")
    start = file.tell()
    size = file.seek(0, 2)
    file.seek(start)
    content = file.read(head.size)
    if len(content) < head.size:
        return False
    length = head.unpack(content)[-1]
    if length != UNDEFINED_LENGTH:
        return start + head.size + length <= size
    while len(content := file.read(item.size)) == item.size:  # encapsulated: PS3.5 A.4
        *tag, length = item.unpack(content)
        if tuple(tag) == SEQUENCE_END:
            return True
        if file.seek(length, 1) > size:
            return False
    return False
