"""clean_reports: from a row to sections, groups of equal reports, encodings and bad rows."""

import json
from pathlib import Path

import pandas as pd
import pytest

from mg3d.data.deidentify import num_identified
from mg3d.data.identity import pseudonym
from mg3d.data.report_text import num_visible
from mg3d.data.reports import Report, clean_report, clean_reports, text_group
from mg3d.data.sources.study import ReportRow
from mg3d.ledger import Reason
from mg3d.params import CleanReports, ReportTable

PARAMS = CleanReports()


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
        ("Her iki akciğer normaldir. Plevral efüzyon saptanmadı.", Reason.FOREIGN_LANGUAGE),
        ("FINDINGS: Dictated but not read.", Reason.EMPTY_REPORT),
    ],
)
def test_reports_without_content(text: str, reason: Reason) -> None:
    assert clean_report(ReportRow("A1", text, {}), PARAMS) is reason


def test_one_section_may_be_not_given() -> None:
    text = "FINDINGS: The lungs are quite clear. IMPRESSION: Not given."
    found = clean_report(ReportRow("A1", text, {}), PARAMS)
    assert isinstance(found, Report)
    assert (found.findings, found.impression) == ("The lungs are quite clear.", "")


def test_what_was_dropped_is_counted_by_rule() -> None:
    text = (
        "CT CHEST\nTECHNIQUE: Helical.\nFINDINGS: No effusion since 3/4/2021. Nodül izlenmedi."
        "\nIMPRESSION: Not given.\nSigned by Dr. A"
    )
    found = clean_report(ReportRow("A1", text, {}), PARAMS)
    assert isinstance(found, Report)
    assert found.findings == "No effusion since [DATE]."
    assert found.dropped == {
        "preamble": 7,
        "heading": len("TECHNIQUE:FINDINGS:IMPRESSION:"),
        "technique": 8,
        "date": 8,
        "foreign": 15,
        "not_given": 9,
        "signature": len("SignedbyDr.A"),
    }
    placeholders = num_visible(found.findings) - num_identified(found.findings)
    kept = num_visible(found.findings) - placeholders
    assert kept + found.dropped.total() == num_visible(text)


def test_reports_of_the_same_words_are_one_group(tmp_path: Path) -> None:
    assert text_group("Lungs clear.", "Normal.") == text_group("LUNGS  clear", "\nnormal")
    assert text_group("Lungs clear.", "") != text_group("Lungs unclear.", "")
    texts = [
        "Findings: The lungs are clear. Compared with 3/4/2021.",
        "The lungs are clear. Compared with 2020-01-31!",
        "The lungs are clear.\nCompared with May 2020",
        "The lungs are not clear. Compared with 3/4/2021.",
    ]
    rows = [f'A{number},"{text}"' for number, text in enumerate(texts)]
    (tmp_path / "reports.csv").write_text("\n".join(["AccessionNumber,ReportText", *rows]))
    summary = clean_reports(
        ReportTable(path=tmp_path / "reports.csv"), tmp_path / "out", PARAMS
    ).summary()
    assert isinstance(summary["counts"], dict)
    assert summary["counts"]["distinct_texts"] == 2
    assert summary["counts"]["reports_of_a_text_that_others_have"] == 3
    assert summary["counts"]["characters_dropped_as_date"] == 8 + 10 + 7 + 8
    table = pd.read_parquet(tmp_path / "out/reports.parquet").set_index("report_id")
    groups = [table.loc[pseudonym("report", f"A{number}"), "text_group"] for number in range(4)]
    assert len(set(groups[:3])) == 1
    assert groups[3] != groups[0]


def test_a_report_is_cleaned_alike_whatever_else_is_in_the_export(tmp_path: Path) -> None:
    found = []
    for name, others in (
        ("a", ""),
        ("b", 'B1,"Dictated by Dr. A. FINDINGS: The lungs are large"\n'),
    ):
        path = tmp_path / f"{name}.csv"
        path.write_text(f'AccessionNumber,ReportText\n{others}A1,"FINDINGS: {GOOD}"\n')
        clean_reports(ReportTable(path=path), tmp_path / name, PARAMS)
        table = pd.read_parquet(tmp_path / name / "reports.parquet").set_index("report_id")
        found.append(table.loc[pseudonym("report", "A1")].to_dict())
    assert found[0] == found[1]


GOOD = "The lungs are clear, as before."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_encodings_and_delimiters(encoding: str, delimiter: str, tmp_path: Path) -> None:
    text = "Größe 2–3 cm, naïve “cyst” stays the same."
    rows = f'AccessionNumber{delimiter}ReportText\nA1{delimiter}"{text}"\n'
    (tmp_path / "reports.csv").write_bytes(rows.encode(encoding))
    clean_reports(ReportTable(path=tmp_path / "reports.csv"), tmp_path / "out", PARAMS)
    (row,) = pd.read_parquet(tmp_path / "out/reports.parquet").to_dict("records")
    assert row["findings"] == 'Größe 2–3 cm, naïve "cyst" stays the same.'
    assert row["report_id"] == pseudonym("report", "A1")
    assert row["accession_id"] == pseudonym("accession", "A1")


def test_bytes_of_no_encoding_are_refused(tmp_path: Path) -> None:
    (tmp_path / "reports.csv").write_bytes(b"AccessionNumber,ReportText\nA1,\x81\xff\n")
    with pytest.raises(ValueError, match="export it as UTF-8"):
        clean_reports(ReportTable(path=tmp_path / "reports.csv"), tmp_path / "out", PARAMS)


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
    summary = clean_reports(ReportTable(path=path), tmp_path / "out", PARAMS).summary()
    assert summary["inputs"] == 10
    assert summary["used"] == 3
    expected = {"duplicate_report_key": 3, "empty_report": 1, "no_key": 1, "unreadable": 1}
    assert summary["reasons"] == {**expected, "report_not_given": 1}
    table = pd.read_parquet(tmp_path / "out/reports.parquet")
    assert set(table["report_id"]) == {pseudonym("report", key) for key in ("A1", "A4", "A6")}
    assert "lungs" not in (tmp_path / "out/ledger.jsonl").read_text()


def test_mistakes_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no report export at .*make demo"):
        clean_reports(ReportTable(path=tmp_path / "reports.csv"), tmp_path / "out", PARAMS)
    (tmp_path / "reports.csv").write_text("Accession,ReportText\nA1,x\n")
    with pytest.raises(ValueError, match=r"no column 'AccessionNumber'.*accession_column"):
        clean_reports(ReportTable(path=tmp_path / "reports.csv"), tmp_path / "out", PARAMS)
    (tmp_path / "reports.csv").write_text("AccessionNumber,ReportText\nA1,\n")
    with pytest.raises(ValueError, match=r"no usable report.*empty_report"):
        clean_reports(ReportTable(path=tmp_path / "reports.csv"), tmp_path / "out", PARAMS)
