"""Stored values -> HU: transfer syntaxes, signs, unused bits, padding."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from data.converters import as_ras, convert_dicom, dcm2niix, load, reasons, simpleitk
from mg3d.data.ct.geometry import arrange
from mg3d.data.ct.header import read_header
from mg3d.data.ct.limits import coded_size
from mg3d.data.ct.pixels import read_stored, read_volume
from mg3d.data.ct.refused import Refused
from mg3d.ledger import Reason
from mg3d.params import DicomVolumes

PARAMS = DicomVolumes(min_slices=2)
Write = Callable[..., list[Path]]


def volume_of(files: list[Path], params: DicomVolumes = PARAMS) -> np.ndarray:
    return read_volume(arrange([read_header(path) for path in files], params), params)[0]


@pytest.mark.parametrize(
    "syntax",
    [
        *("ImplicitVRLittleEndian", "ExplicitVRBigEndian", "DeflatedExplicitVRLittleEndian"),
        *("JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless"),
        *("JPEG2000Lossless", "RLELossless"),
    ],
)
def test_lossless_syntaxes_give_the_hu_that_other_converters_see(
    syntax: str, tmp_path: Path, write_series: Write, encode_slice: Callable
) -> None:
    hu = np.random.default_rng(1).integers(-1000, 1000, (8, 32, 24))
    files = write_series(tmp_path / "dicom", hu=hu)
    for path in files:
        encode_slice(path, syntax)
        assert read_header(path).complete
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    ours, affine = as_ras(load(tmp_path / "out"))
    np.testing.assert_array_equal(ours, hu.transpose(2, 1, 0)[::-1, ::-1])
    converters = {"simpleitk": simpleitk(files)}
    if not syntax.startswith("Deflated"):  # dcm2niix does not inflate
        converters["dcm2niix"] = dcm2niix(tmp_path / "dicom", tmp_path / "dcm2niix")
    for theirs in converters.values():
        array, their_affine = as_ras(theirs)
        np.testing.assert_array_equal(ours, np.rint(array))
        np.testing.assert_allclose(affine, their_affine, atol=1e-3)


@pytest.mark.parametrize("name", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian"])
def test_files_of_other_encoders_hold_the_same_values(name: str) -> None:
    plain, theirs = (
        next(read_stored(Path(get_testdata_file(f"MR_small{ending}.dcm")), [None], 2**20)[1])
        for ending in ("", f"_{name}")
    )
    np.testing.assert_array_equal(plain, theirs)


def test_near_lossless_stays_within_its_bound(
    tmp_path: Path, write_series: Write, encode_slice: Callable
) -> None:
    files = write_series(tmp_path, hu=np.random.default_rng(1).integers(-1000, 1000, (2, 32, 24)))
    plain = volume_of(files).astype(int)
    for path in files:
        encode_slice(path, "JPEGLSNearLossless")
    assert np.abs(volume_of(files) - plain).max() <= 2


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14"])
def test_a_code_stream_of_another_size_is_refused_before_it_is_decoded(
    syntax: str, tmp_path: Path, write_series: Write, encode_slice: Callable
) -> None:
    files = write_series(tmp_path, hu=np.zeros((2, 32, 24)))
    for path in files:
        encode_slice(path, syntax)
        data = pydicom.dcmread(path)
        (stream,) = pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1)
        assert coded_size(stream) == (32, 24)
        data.Rows, data.Columns = 24, 32
        data.save_as(path)
    with pytest.raises(Refused, match=r"header says \(24, 32\), code stream \(32, 24\)") as caught:
        volume_of(files)
    assert caught.value.reason is Reason.UNDECODABLE


def test_an_unknown_syntax_is_undecodable(tmp_path: Path, write_series: Write) -> None:
    for path in write_series(tmp_path / "dicom"):
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
        data.PixelData = pydicom.encaps.encapsulate([b"\0" * 100])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
        data.save_as(path)
    with pytest.raises(ValueError, match="undecodable"):
        convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"undecodable": 8}


def test_unused_bits_are_masked_and_the_stored_sign_extends(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    """12 of 16 bits, by hand: 0xFFB is -5; an overlay in bit 15 changes nothing."""
    files = write_series(tmp_path, hu=np.zeros((2, 1, 4)))
    stored = np.array([0x0FFB, 0x8FFB, 0x0064, 0x8064], "<u2")
    for path in files:
        edit_slice(path, BitsStored=12, HighBit=11, PixelRepresentation=1, RescaleIntercept=0.0)
        edit_slice(path, PixelData=stored.tobytes())
    assert volume_of(files)[::-1, 0, 0].tolist() == [-5, -5, 100, 100]
    for path in files:
        edit_slice(path, PixelRepresentation=0)
    assert volume_of(files)[::-1, 0, 0].tolist() == [4091, 4091, 100, 100]
    edit_slice(files[1], HighBit=15)  # retired in PS3.5 8.1.1, and read differently by everyone
    with pytest.raises(Refused, match="undecodable: HighBit 15 of 12 BitsStored"):
        volume_of(files)


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian"])
@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"RescaleIntercept": -1024.5},
        {"RescaleIntercept": 32000.0},
        {"RescaleIntercept": -40000.0},
        {"RescaleSlope": 0.7, "PixelPaddingValue": 3},
        {"PixelRepresentation": 1, "RescaleIntercept": -20000.0},
        {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1},
        {"BitsStored": 13, "HighBit": 12},
        {"PixelPaddingValue": 10, "PixelPaddingRangeLimit": 999},
    ],
    ids=str,
)
def test_pixels_read_straight_from_the_file_are_the_decoded_ones(
    tags: dict, syntax: str, tmp_path: Path, write_series: Write, encode_slice: Callable
) -> None:
    """All values of 16 bits, without pydicom's decoder and with it."""
    files = write_series(tmp_path, hu=np.zeros((2, 256, 256)), **tags)
    for path in files:
        data = pydicom.dcmread(path)
        data.PixelData = np.arange(2**16, dtype="<u2").tobytes()
        data.save_as(path)
        if syntax.startswith("Implicit"):
            data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
            data.save_as(path, implicit_vr=True, little_endian=True)
    headers = [read_header(path) for path in files]
    assert all(header.native for header in headers)
    decoded = [replace(header, native=None) for header in headers]
    straight, slow = (read_volume(arrange(part, PARAMS), PARAMS) for part in (headers, decoded))
    np.testing.assert_array_equal(straight[0], slow[0])
    np.testing.assert_array_equal(straight[1], slow[1])


@pytest.mark.parametrize(
    "tags",
    [
        {"SamplesPerPixel": 3},
        {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"Rows": 5},
        {"HighBit": 14},
        {"NumberOfFrames": 2},
    ],
    ids=str,
)
def test_what_is_not_plain_is_left_to_the_decoder(
    tags: dict, tmp_path: Path, write_series: Write
) -> None:
    assert read_header(write_series(tmp_path)[0]).native is not None
    assert read_header(write_series(tmp_path, **tags)[0]).native is None


def test_a_file_that_shrank_since_its_header_was_read_is_undecodable(
    tmp_path: Path, write_series: Write
) -> None:
    files = write_series(tmp_path)
    grid = arrange([read_header(path) for path in files], PARAMS)
    files[3].write_bytes(files[3].read_bytes()[:-10])
    with pytest.raises(Refused, match="undecodable: ends within the pixels"):
        read_volume(grid, PARAMS)


def padded_series(folder: Path, write_series: Write, **tags: object) -> list[Path]:
    """Signed pixels with rows of -2000, -1500, 0, 50 and intercept 0."""
    stored = np.tile(np.array([-2000, -1500, 0, 50], "<i2"), 12).tobytes()
    values = {"PixelRepresentation": 1, "RescaleIntercept": 0.0, "PixelData": stored}
    return write_series(folder, hu=np.zeros((8, 12, 4)), **(values | tags))


def test_padding_becomes_air(tmp_path: Path, write_series: Write) -> None:
    def hu(params: DicomVolumes = PARAMS, **tags: object) -> list[int]:
        files = padded_series(tmp_path, write_series, **tags)
        return volume_of(files, params)[::-1, 0, 0].tolist()

    assert hu() == [-2000, -1500, 0, 50]
    assert hu(PixelPaddingValue=-2000) == [-1000, -1500, 0, 50]
    limits = {"PixelPaddingValue": -1400, "PixelPaddingRangeLimit": -2000}
    assert hu(**limits) == [-1000, -1000, 0, 50]
    as_stored = PARAMS.model_copy(update={"padding_hu": None})
    assert hu(as_stored, **limits) == [-2000, -1500, 0, 50]


def test_padding_written_with_the_other_sign_is_still_padding(
    tmp_path: Path, write_series: Write
) -> None:
    """A US 63,536 beside signed pixels is -2000: PixelRepresentation decides."""
    files = padded_series(tmp_path, write_series)
    for path in files:
        data = pydicom.dcmread(path)
        data.add_new("PixelPaddingValue", "US", 63536)
        data.save_as(path)
    assert volume_of(files)[::-1, 0, 0].tolist() == [-1000, -1500, 0, 50]


def test_other_converters_keep_padding_as_tissue_of_minus_2000_hu(
    tmp_path: Path, write_series: Write
) -> None:
    """We are right: C.7.5.1.1.2 says that these pixels are no part of the image."""
    files = padded_series(tmp_path / "dicom", write_series, PixelPaddingValue=-2000)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert as_ras(load(tmp_path / "out"))[0].min() == -1500
    for theirs in (simpleitk(files), dcm2niix(tmp_path / "dicom", tmp_path / "dcm2niix")):
        assert as_ras(theirs)[0].min() == -2000
