"""clean_reports: encodings, headings, unwrapping, de-identification, and bad rows."""

import json
from pathlib import Path

import pandas as pd
import pytest

from mg3d.data.identity import pseudonym
from mg3d.data.reports import (
    Sections,
    clean_report,
    clean_reports,
    deidentify,
    normalise,
    split_sections,
    unwrap,
)
from mg3d.ledger import Reason
from mg3d.params import CleanReports

PARAMS = CleanReports()


def sections(text: str) -> tuple[str, str]:
    found = split_sections(normalise(text))
    return found.findings, found.impression


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("FINDINGS: Lungs clear. IMPRESSION: Normal.", "Lungs clear.", "Normal."),
        ("Findings\nLungs clear.\n\nImpressions\nNormal.", "Lungs clear.", "Normal."),
        ("FINDING - Lungs clear.\nCONCLUSION - Normal.", "Lungs clear.", "Normal."),
        ("**FINDINGS:** Clear.\n\n**OPINION (preliminary):** Normal.", "Clear.", "Normal."),
        ("CHEST CT FINDINGS: Clear. Conclusion: Normal.", "Clear.", "Normal."),
        ("[FINDINGS]\nClear.\n=== SUMMARY ===\nNormal.", "Clear.", "Normal."),
        ("IMPRESSION: Normal.\nFINDINGS: Clear.", "Clear.", "Normal."),
        ("Report: Clear lungs.", "Clear lungs.", ""),
        ("Lungs clear. No effusion.", "Lungs clear. No effusion.", ""),
        ("FINDINGS: A.\nTECHNIQUE: Helical.\nFINDINGS: B.", "A.\nB.", ""),
        (
            "INDICATION: Cough.\nCOMPARISON: None.\n\nClear.\n\nIMPRESSION: Normal.",
            "Clear.",
            "Normal.",
        ),
        ("Lungs are clear.\nIMPRESSION: Normal.", "Lungs are clear.", "Normal."),
        (
            "FINDINGS: Clear.\nIMPRESSION: Normal.\nElectronically signed by: A B, MD",
            "Clear.",
            "Normal.",
        ),
        (
            "FINDINGS: Clear.\nIMPRESSION: Normal.\nDictated by Dr. A on 3/4/2021",
            "Clear.",
            "Normal.",
        ),
        # The words alone, in a sentence, are no headings.
        ("No new findings. The impression is of\nfindings: as before.", None, ""),
        ("FINDINGS: LUNGS: Clear. HEART: Large.", "LUNGS: Clear. HEART: Large.", ""),
    ],
)
def test_headings(text: str, findings: str | None, impression: str) -> None:
    expected = normalise(text).replace("\n", " ") if findings is None else findings
    assert sections(text) == (expected, impression)


def test_dropped_characters_are_counted() -> None:
    # "TECHNIQUE:Helical." and "FINDINGS:" without blanks: 18 + 9
    assert split_sections("TECHNIQUE: Helical.\nFINDINGS: Clear.").num_dropped_characters == 27


@pytest.mark.parametrize(
    ("wrapped", "expected"),
    [
        (
            "The lungs are clear and the\nheart is normal.",
            "The lungs are clear and the heart is normal.",
        ),
        ("A 3-\nD view.", "A 3-D view."),
        ("Lungs clear\nHeart normal", "Lungs clear\nHeart normal"),
        ("1. Nodule of the\nright lobe.\n2. Cyst.", "1. Nodule of the right lobe.\n2. Cyst."),
        ("- Nodule\n- Cyst", "- Nodule\n- Cyst"),
        ("LUNGS:\nClear.\n\nHEART:\nLarge.", "LUNGS: Clear.\nHEART: Large."),
        ("  A   wide    gap. \n\n\n B. ", "A wide gap.\nB."),
        ("", ""),
    ],
)
def test_unwrap(wrapped: str, expected: str) -> None:
    assert unwrap(wrapped) == expected


def test_unwrap_joins_full_lines_before_capitals() -> None:
    text = (
        "There is a spiculated nodule in the anterior segment of\nLeft upper lobe.\nHeart normal."
    )
    assert unwrap(text).split("\n") == [
        "There is a spiculated nodule in the anterior segment of Left upper lobe.",
        "Heart normal.",
    ]


def test_normalise_undoes_escapes() -> None:
    text = "A &lt; B<br/>C\\.br\\D_x000D_\nE\u00a0F\u2019s\r\nG\x00"
    assert normalise(text) == "A < B\nC\nD\nE F's\nG"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Seen on 03/12/2021.", "Seen on [DATE]."),
        ("Prior of 2020-01-31 and 3.12.2021, 4/5/21.", "Prior of [DATE] and [DATE], [DATE]."),
        ("Since March 3, 2021 and 12 Dec 2019.", "Since [DATE] and [DATE]."),
        ("CT of May 2020.", "CT of [DATE]."),
        ("Discussed with Dr. Jane Smith.", "Discussed with Dr. [NAME]."),
        ("Drs. Smith and Jones agree. Lungs clear.", "Drs. [NAME] agree. Lungs clear."),
        ("Patient DOE^JANE^M here.", "Patient [NAME] here."),
        ("Read by John Q. Public, MD.", "Read by [NAME]."),
        ("Reviewed by Dr. Lind on 2022-06-06.", "Reviewed by Dr. [NAME] on [DATE]."),
        ("MRN: 123456, accession CT-99812.", "MRN: [ID], accession [ID]."),
        ("UID 1.2.840.113619.2.55", "UID [ID]"),
        ("Case 00123456 filed.", "Case [ID] filed."),
        (
            "Call (555) 123-4567, +49 170 1234567 or ext. 4412.",
            "Call [PHONE], [PHONE] or ext. [PHONE].",
        ),
        ("Mail a.b@c.org.", "Mail [EMAIL]."),
    ],
)
def test_identifiers_become_placeholders(text: str, expected: str) -> None:
    assert deidentify(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "A 1.5 x 2 cm nodule, previously 12/14/10 mm, HU 40.5.",
        "Image 4/120 of series 3. Levels T12 to L1, segment S6.",
        "Compared with prior MR. No effusion. There may be 2 cysts.",
        "About 20 % of 12 nodules; stage IIIA, T2N1M0; 120 kV, 3.5.2 software.",
        "No CT of the year 2019 is available. DR CHEST shows less.",
    ],
)
def test_measurements_are_not_identifiers(text: str) -> None:
    assert deidentify(text) == text


def test_identifying_columns_of_the_row_are_scrubbed() -> None:
    row = {
        "AccessionNumber": "ACC77",
        "PatientName": "ROWAN^ELEANOR",
        "ReferringPhysician": "Vesterholt",
        "MRN": "HX-22",
        "Age": "70",
        "ReportText": "",
    }
    text = "Ms Rowan (HX-22, ACC77), sent by Vesterholt at 70. Eleanor's scan; a rowan tree."
    assert deidentify(text, row) == (
        "Ms [NAME] ([ID], [ID]), sent by [NAME] at 70. [NAME]'s scan; a rowan tree."
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.EMPTY_REPORT),
        (" \n\t ", Reason.EMPTY_REPORT),
        ("Not given.", Reason.REPORT_NOT_GIVEN),
        ("FINDINGS: Not given. IMPRESSION: N/A", Reason.REPORT_NOT_GIVEN),
        ("FINDINGS:\nIMPRESSION:", Reason.EMPTY_REPORT),
        ("TECHNIQUE: Helical CT of the chest.", Reason.EMPTY_REPORT),
        ("FINDINGS: ok.", Reason.EMPTY_REPORT),
    ],
)
def test_reports_without_content(text: str, reason: Reason) -> None:
    assert clean_report({"ReportText": text}, PARAMS) is reason


def test_one_section_may_be_not_given() -> None:
    text = "FINDINGS: The lungs are quite clear. IMPRESSION: Not given."
    found = clean_report({"ReportText": text}, PARAMS)
    assert isinstance(found, Sections)
    assert (found.findings, found.impression) == ("The lungs are quite clear.", "")


GOOD = "The lungs are clear, as before."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_encodings_and_delimiters(encoding: str, delimiter: str, tmp_path: Path) -> None:
    text = "Größe 2–3 cm, naïve “cyst” stays the same."
    rows = f'AccessionNumber{delimiter}ReportText\nA1{delimiter}"{text}"\n'
    (tmp_path / "reports.csv").write_bytes(rows.encode(encoding))
    clean_reports(tmp_path / "reports.csv", tmp_path / "out", PARAMS)
    (row,) = pd.read_parquet(tmp_path / "out/reports.parquet").to_dict("records")
    assert row["findings"] == 'Größe 2–3 cm, naïve "cyst" stays the same.'
    assert row["report_id"] == pseudonym("report", "A1")
    assert row["accession_id"] == pseudonym("accession", "A1")


def test_bytes_of_no_encoding_are_refused(tmp_path: Path) -> None:
    (tmp_path / "reports.csv").write_bytes(b"AccessionNumber,ReportText\nA1,\x81\xff\n")
    with pytest.raises(ValueError, match="export it as UTF-8"):
        clean_reports(tmp_path / "reports.csv", tmp_path / "out", PARAMS)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_every_bad_row_ends_in_the_ledger(suffix: str, tmp_path: Path) -> None:
    rows = [
        ("A1", GOOD),
        ("A2", ""),
        ("A3", "Not given."),
        ("", GOOD),
        ("A4", GOOD),
        ("A4", GOOD),
        ("A5", GOOD),
        ("A5", GOOD + " But different."),
        (" A6 ", GOOD),
    ]
    path = tmp_path / f"reports.{suffix}"
    if suffix == "csv":
        lines = ["AccessionNumber,ReportText", *(f'{key},"{text}"' for key, text in rows)]
        lines.append("A7,too,many,fields")
    else:
        lines = [json.dumps({"AccessionNumber": key, "ReportText": text}) for key, text in rows]
        lines.append("{not json")
    path.write_text("\n".join(lines) + "\n")
    summary = clean_reports(path, tmp_path / "out", PARAMS).summary()
    assert summary["inputs"] == 10
    assert summary["used"] == 3
    expected = {"duplicate_report_key": 3, "empty_report": 1, "no_key": 1, "unreadable": 1}
    assert summary["reasons"] == {**expected, "report_not_given": 1}
    table = pd.read_parquet(tmp_path / "out/reports.parquet")
    assert set(table["report_id"]) == {pseudonym("report", key) for key in ("A1", "A4", "A6")}
    assert "lungs" not in (tmp_path / "out/ledger.jsonl").read_text()


def test_mistakes_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no report export at .*make demo"):
        clean_reports(tmp_path / "reports.csv", tmp_path / "out", PARAMS)
    (tmp_path / "reports.csv").write_text("Accession,ReportText\nA1,x\n")
    with pytest.raises(ValueError, match=r"no column 'AccessionNumber'.*accession_column"):
        clean_reports(tmp_path / "reports.csv", tmp_path / "out", PARAMS)
    (tmp_path / "reports.csv").write_text("AccessionNumber,ReportText\nA1,\n")
    with pytest.raises(ValueError, match=r"no usable report.*empty_report"):
        clean_reports(tmp_path / "reports.csv", tmp_path / "out", PARAMS)
