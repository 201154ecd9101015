"""What is no CT of one patient's chest to learn from, and why."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.converters import convert_dicom, load, reasons
from mg3d.data.ct.admission import RADIATION_DOSE_REPORT
from mg3d.data.identity import pseudonym
from mg3d.params import DicomVolumes

PARAMS = DicomVolumes(min_slices=4)
Write = Callable[..., list[Path]]


@pytest.mark.parametrize(
    ("reason", "tags"),
    [
        ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("dose_report", {"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]}),
        ("dose_report", {"SOPClassUID": RADIATION_DOSE_REPORT}),
        ("secondary", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}),
        ("secondary", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
        ("reformat", {"ImageType": ["DERIVED", "PRIMARY", "MPR"]}),
        ("reformat", {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}),
        ("reformat", {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MIP"]}),
        ("not_ct", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"}),
        ("burned_in", {"BurnedInAnnotation": "YES"}),
        ("used", {"BurnedInAnnotation": "NO"}),
        ("used", {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}),
    ],
)
def test_each_kind_of_object_has_its_reason(
    reason: str, tags: dict, tmp_path: Path, write_series: Write
) -> None:
    write_series(tmp_path / "dicom", **tags)
    write_series(tmp_path / "dicom", uid="2.1", study="2", patient="P2", prefix="good-")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    found = reasons(tmp_path / "out")
    assert found == ({"used": 16} if reason == "used" else {"used": 8, reason: 8})


CORONAL = [1.0, 0, 0, 0, 0, -1.0]
SAGITTAL = [0, 1.0, 0, 0, 0, -1.0]


@pytest.mark.parametrize(
    "scouts",
    [
        [{"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}],
        [{"ImageOrientationPatient": CORONAL}],
        [{"ImageOrientationPatient": CORONAL}, {"ImageOrientationPatient": SAGITTAL}],
    ],
    ids=["ImageType", "coronal", "both"],
)
def test_a_localizer_within_a_series_is_left_out_and_the_series_used(
    scouts: list[dict], tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    files = write_series(tmp_path / "dicom")
    convert_dicom(tmp_path / "dicom", tmp_path / "alone", PARAMS)
    for number, tags in enumerate(scouts):
        path = tmp_path / f"dicom/scout-{number}"
        path.write_bytes(files[0].read_bytes())
        edit_slice(path, SOPInstanceUID=f"9.{number}", Rows=5, PixelData=bytes(120), **tags)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"used": 8, "localizer": len(scouts)}
    assert load(tmp_path / "out").to_bytes() == load(tmp_path / "alone").to_bytes()


@pytest.mark.parametrize(
    ("reason", "tags", "number"),
    [
        ("mixed_orientation", {"ImageOrientationPatient": CORONAL}, 3),
        ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "PatientID": "x"}, 1),
    ],
    ids=["three planes across", "of another patient"],
)
def test_other_intruders_cost_the_series(
    reason: str,
    tags: dict,
    number: int,
    tmp_path: Path,
    write_series: Write,
    edit_slice: Callable,
) -> None:
    files = write_series(tmp_path / "dicom")
    for path in files[:number]:
        edit_slice(path, **tags)
    write_series(tmp_path / "dicom", uid="2.1", study="2", patient="P2", prefix="good-")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"used": 8, reason: 8}


def test_strict_fails_on_several_patients_in_a_series_and_counts_them(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    for number in (1, 2):
        uid = f"3.{number}"
        files = write_series(tmp_path / "dicom", uid=uid, study=uid, patient=uid, prefix=f"m{uid}")
        edit_slice(files[0], PatientID="another")
    write_series(tmp_path / "dicom", prefix="good-")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"used": 8, "mixed_patients": 16}
    strict = PARAMS.model_copy(update={"strict": True})
    with pytest.raises(ValueError, match=r"^2 series .* several patients .*mend the"):
        convert_dicom(tmp_path / "dicom", tmp_path / "strict", strict)
    assert reasons(tmp_path / "strict") == {"used": 8, "mixed_patients": 16}  # written all the same


@pytest.mark.parametrize(
    ("charset", "patient"),
    [
        ("ISO_IR 100", "Müller-7"),
        ("ISO_IR 144", "Пациент-7"),
        ("GB18030", "张-7"),
        ("ISO 2022 IR 149", "김-7"),
    ],
)
def test_one_patient_has_one_pseudonym_in_any_character_set(
    charset: str, patient: str, tmp_path: Path, write_series: Write
) -> None:
    import pandas as pd

    for number, name in enumerate((charset, "ISO_IR 192")):
        uid = f"3.{number}"
        names = [charset] if not charset.startswith("ISO 2022") else ["", charset]
        value = names if name == charset and len(names) > 1 else name
        write_series(
            *(tmp_path / "dicom",),
            uid=uid,
            study=uid,
            prefix=uid,
            SpecificCharacterSet=value,
            PatientID=patient,
            PatientName=patient,
        )
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    table = pd.read_parquet(tmp_path / "out/manifest.parquet")
    assert table["patient_id"].tolist() == [pseudonym("patient", patient)] * 2


def test_an_unknown_character_set_is_no_reason_to_lose_a_series(
    tmp_path: Path, write_series: Write, recwarn: pytest.WarningsRecorder
) -> None:
    write_series(tmp_path / "dicom", SpecificCharacterSet="ISO_IR 999", patient="P7")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert load(tmp_path / "out").shape == (12, 10, 8)
    assert not [warning for warning in recwarn if "P7" in str(warning.message)]


def test_nothing_but_pseudonyms_geometry_and_pixels_leaves(
    tmp_path: Path, write_series: Write
) -> None:
    """Every text of a header, searched in the unpacked bytes of every output."""
    import gzip

    secrets = {
        "PatientID": "SECRETID",
        "PatientName": "SECRET^NAME",
        "InstitutionName": "SECRETHOSPITAL",
        "StudyDate": "20191231",
        "PatientBirthDate": "19470809",
        "StudyDescription": "SECRETSTUDY",
        "StationName": "SECRETSTATION",
        "AccessionNumber": "SECRETACC",
        "ProtocolName": "SECRETPROTOCOL",
    }
    write_series(tmp_path / "dicom", study="1.2.3.987654", uid="1.2.3.456789", **secrets)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    for path in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        for secret in ("SECRET", "20191231", "19470809", "987654", "456789"):
            assert secret.encode() not in content, path.name
            assert secret not in path.name
