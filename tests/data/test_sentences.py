"""segment_sentences: what ends a sentence in a radiology report, clauses, ids and spans."""

import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.data.sentences import _split_line, _windows, segment_sentences, split_sentences
from mg3d.params import DicomExport, SegmentSentences, Sources


def split(text: str, mode: str = "sentence") -> list[str]:
    return [text[start:end] for start, end in split_sentences(text, mode)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # measurements and decimals
        (
            "The nodule measures 1.5 x 2 cm. It is stable.",
            ["The nodule measures 1.5 x 2 cm.", "It is stable."],
        ),
        ("It has 40.5 HU. The other is 3 mm.", ["It has 40.5 HU.", "The other is 3 mm."]),
        ("There is a 5 mm. nodule.", ["There is a 5 mm. nodule."]),
        ("A 3.5 cm mass. 2 nodules. 5 mm cyst.", ["A 3.5 cm mass.", "2 nodules.", "5 mm cyst."]),
        # abbreviations
        ("Seen by Dr. [NAME] on [DATE]. Clear.", ["Seen by Dr. [NAME] on [DATE].", "Clear."]),
        ("A cyst of approx. 3 cm. Clear.", ["A cyst of approx. 3 cm.", "Clear."]),
        (
            "Small cysts, e.g. Hepatic ones, are seen.",
            ["Small cysts, e.g. Hepatic ones, are seen."],
        ),
        ("See image no. 3 of 4. Clear.", ["See image no. 3 of 4.", "Clear."]),
        ("No. of nodules: 3. Clear.", ["No. of nodules: 3.", "Clear."]),
        (
            "Is there an effusion? No. Heart normal.",
            ["Is there an effusion?", "No.", "Heart normal."],
        ),
        ("Cyst, max. 3 mm, vs. 2 mm before.", ["Cyst, max. 3 mm, vs. 2 mm before."]),
        # lists
        ("1. No PE.\n2. Nodule in RUL", ["No PE.", "Nodule in RUL"]),
        ("1. No PE. 2. Stable nodule. 3. Effusion.", ["No PE.", "Stable nodule.", "Effusion."]),
        ("1) Nodule. 2) Cyst.", ["Nodule.", "Cyst."]),
        ("- Nodule\n• Cyst", ["Nodule", "Cyst"]),
        # missing periods, missing spaces, odd case
        (
            "Lungs clear\nNo effusion\nHeart normal.",
            ["Lungs clear", "No effusion", "Heart normal."],
        ),
        ("It is 1.2 cm.Next one is smaller.", ["It is 1.2 cm.", "Next one is smaller."]),
        ("lungs are clear. no effusion.", ["lungs are clear.", "no effusion."]),
        ("LUNGS ARE CLEAR. NO EFFUSION.", ["LUNGS ARE CLEAR.", "NO EFFUSION."]),
        ("", []),
        (" \n.\n--\n", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert split(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Clear lungs, no effusion; heart normal.",
            ["Clear lungs,", "no effusion;", "heart normal."],
        ),
        ("Nodule (stable, old), 1,5 cm.", ["Nodule (stable, old),", "1,5 cm."]),
        ("Old, new. Left; right.", ["Old,", "new.", "Left;", "right."]),
        ("Odd ) bracket, (here, there)", ["Odd ) bracket,", "(here, there)"]),
        ("Nothing ,, empty", ["Nothing ,", "empty"]),
    ],
)
def test_clauses(text: str, expected: list[str]) -> None:
    assert split(text, "clause") == expected


EXPORT = Sources(dicom_export=DicomExport())
WORDS = (
    "No ",
    "nodule ",
    "1.5 ",
    "cm. ",
    "approx. ",
    "The ",
    "e.g. ",
    "A.",
    "Dr. ",
    "[DATE] ",
    "HU",
)
MARKS = ("(", ") ", ", ", "; ", "\n", "1. ", "- ", "? ", "...", "b) ", '"', " ", "!", "ü", "& ")
MODES = ["sentence", "clause"]
PIECES = st.sampled_from(WORDS + MARKS)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join), st.sampled_from(["sentence", "clause"]))
def test_spans_are_ordered_disjoint_trimmed_and_lose_nothing(text: str, mode: str) -> None:
    spans = split_sentences(text, mode)
    covered = 0
    for start, end in spans:
        assert covered <= start < end
        assert text[start:end] == text[start:end].strip()
        assert "\n" not in text[start:end]
        covered = end
    inside = "".join(text[start:end] for start, end in spans)
    letters = [c for c in text if c.isalpha()]
    assert [c for c in inside if c.isalpha()] == letters


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=4), st.sampled_from(MODES))
def test_a_concatenations_sentences_are_those_of_its_lines(texts: list[str], mode: str) -> None:
    """Joined by a line end, as sections are; within a line a sentence may go on."""
    together = split_sentences("\n".join(texts), mode)
    expected, offset = [], 0
    for text in texts:
        expected += [(start + offset, end + offset) for start, end in split_sentences(text, mode)]
        offset += len(text) + 1
    assert together == expected


def reports(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    table = pd.DataFrame(rows, columns=["report_id", "findings", "impression"])
    table.insert(1, "accession_id", "accession-" + table["report_id"])
    table["text_group"] = "text-" + table["report_id"]
    (folder / "dicom_export").mkdir(parents=True)
    table.to_parquet(folder / "dicom_export/reports.parquet")
    return folder


def test_table_ids_spans_and_cut_tail(tmp_path: Path) -> None:
    source = reports(
        tmp_path / "in",
        [("r1", "A one. A two.", "B one.\nB two."), ("r2", "", "Only this."), ("r3", "--", "")],
    )
    params = SegmentSentences(max_sentences=3)
    summary = segment_sentences(source, tmp_path / "out", params, EXPORT).summary()
    assert (summary["inputs"], summary["used"], summary["reasons"]) == (3, 2, {"no_sentences": 1})
    table = pd.read_parquet(tmp_path / "out/sentences.parquet")
    assert table["sentence_id"].tolist() == ["r1:0", "r1:1", "r1:2", "r2:0"]
    assert table["text"].tolist() == ["A one.", "A two.", "B one.", "Only this."]
    assert table["section"].tolist() == ["findings", "findings", "impression", "impression"]
    assert table["num_dropped"].tolist() == [1, 1, 1, 0]
    assert table["start"].tolist() == [0, 7, 0, 0]
    assert pd.read_parquet(tmp_path / "out/reports.parquet").to_dict("split")["data"] == [
        ["r1", "accession-r1", "text-r1", 3, 1],
        ["r2", "accession-r2", "text-r2", 1, 0],
    ]
    source_table = pd.read_parquet(source / "dicom_export/reports.parquet").set_index("report_id")
    for row in table.itertuples():
        section = source_table.loc[row.report_id, row.section]
        assert section[row.start : row.end] == row.text


def test_ids_are_stable_under_re_runs_and_edits_of_other_reports(tmp_path: Path) -> None:
    mine = ("r2", "A one. A two.", "B one.")
    tables = []
    for name, rows in (
        ("first", [("r1", "C.", "D."), mine]),
        ("again", [("r1", "C.", "D."), mine]),
        ("edited", [("r0", "New one. And two.", ""), mine, ("r1", "C. E. F.", "")]),
    ):
        source = reports(tmp_path / name, rows)
        segment_sentences(source, tmp_path / name / "out", SegmentSentences(), EXPORT)
        table = pd.read_parquet(tmp_path / name / "out/sentences.parquet")
        tables.append(table[table["report_id"] == "r2"].to_dict("records"))
    assert tables[0] == tables[1] == tables[2]
    assert [row["sentence_id"] for row in tables[0]] == ["r2:0", "r2:1", "r2:2"]


def test_a_report_of_ten_thousand_sentences_keeps_its_first(tmp_path: Path) -> None:
    sentences = [f"Nodule {i} measures 1.{i} cm." for i in range(10_000)]
    rows = [("long", " ".join(sentences), "Normal."), ("short", "A.", "")]
    source = reports(tmp_path / "in", rows)
    start = time.process_time()
    segment_sentences(source, tmp_path / "out", SegmentSentences(), EXPORT)
    assert time.process_time() - start < 30
    table = pd.read_parquet(tmp_path / "out/sentences.parquet").set_index("report_id")
    assert table.loc["long", "text"].tolist() == sentences[:64]
    assert set(table.loc["long", "num_dropped"]) == {10_001 - 64}
    assert table.loc["short", "num_dropped"] == 0


@pytest.mark.parametrize(
    "sentence", ["Seen by Dr. Hale (old. Or not) at 1.5 cm. ", "no effusion. ", "No end ", "A(. B "]
)
def test_windows_tile_a_long_line_and_change_no_sentence(
    sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = sentence * 40
    whole = [line[start:end].strip() for start, end in _split_line(line)]
    monkeypatch.setattr("mg3d.data.sentences._WINDOW", 100)
    _split_line.cache_clear()
    windows = _windows(line)
    assert "".join(line[start:end] for start, end in windows) == line
    assert [line[start:end].strip() for start, end in _split_line(line)] == whole
    if "." in sentence[:-2]:
        assert max(end - start for start, end in windows) <= 100
    _split_line.cache_clear()


def test_without_input_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run clean_reports first"):
        segment_sentences(tmp_path, tmp_path / "out", SegmentSentences(), EXPORT)
    source = reports(tmp_path / "in", [("r1", "", "--")])
    with pytest.raises(ValueError, match=r"no sentence in any report"):
        segment_sentences(source, tmp_path / "out", SegmentSentences(), EXPORT)


def test_the_demos_170_reports_take_seconds(tmp_path: Path) -> None:
    """Every sentence is different, so no cache helps; the limit is 15 s."""
    rows = [
        (
            f"r{i}",
            " ".join(
                f"Nodule {j} of report {i} measures 1.{j} x {j} cm. Stable." for j in range(8)
            ),
            "\n".join(f"{j}. Point {j} of report {i}" for j in range(4)),
        )
        for i in range(170)
    ]
    source = reports(tmp_path / "in", rows)
    start = time.process_time()
    segment_sentences(source, tmp_path / "out", SegmentSentences(), EXPORT)
    assert time.process_time() - start < 15
    assert len(pd.read_parquet(tmp_path / "out/sentences.parquet")) == 170 * 20
