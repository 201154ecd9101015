"""What a hospital exports: a tree of DICOM files and one table of reports.

Layout (the interface; an owner of real data drops it in the same place)::

    dicom/**/*          any tree, any file names, several series mixed in a folder
    reports.csv         or reports.jsonl: one row per report, keyed by accession number

`sources.dicom_export` in params.yaml says where they lie and what the two columns are called.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from mg3d.data.sources.study import ReportRow
from mg3d.params import ReportTable

DICOM_FOLDER = "dicom"
REPORTS_FILE = "reports.csv"
ACCESSION_COLUMN = "AccessionNumber"
TEXT_COLUMN = "ReportText"

REMEDY = "`make demo` lays out the embedded cohort; README, 'Your own data', says where yours goes"


def find_files(folder: Path) -> list[Path]:
    """Every regular file under ``folder``, sorted by path. Raises ValueError if there is none."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: {REMEDY}")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ValueError(f"no files under {folder}: {REMEDY}")
    return files


def read_reports(source: ReportTable) -> Iterator[ReportRow | None]:
    """Rows of the export; ``None`` for one that cannot be read.

    ``.jsonl`` is one object a line; anything else is CSV with ``,`` ``;`` or tab. Encodings, in
    this order: UTF-16 with its byte order mark, UTF-8 with or without one, Windows-1252. Raises
    ValueError if the file is absent, lacks a column, or is in none of the encodings.
    """
    path, key, text = source.path, source.accession_column, source.text_column
    if not path.is_file():
        raise ValueError(f"no report export at {path}: {REMEDY}")
    content = _decode(path)
    rows = _jsonl(content, {key, text}) if path.suffix == ".jsonl" else _csv(content, source)
    for row in rows:
        if row is None:
            yield None
            continue
        others = {name: value for name, value in row.items() if name != text}
        yield ReportRow(row.get(key, "").strip(), row.get(text, ""), others)


def _csv(content: str, source: ReportTable) -> Iterator[dict[str, str] | None]:
    header = content.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    csv.field_size_limit(1 << 24)
    rows = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter, restkey="\x00")
    for setting in ("accession_column", "text_column"):
        wanted = getattr(source, setting)
        if wanted not in (rows.fieldnames or []):
            raise ValueError(
                f"{source.path.name} has no column {wanted!r}, only {list(rows.fieldnames or [])}: "
                f"set sources.dicom_export.reports.{setting} in params.yaml"
            )
    for row in rows:
        yield None if "\x00" in row else {key: value or "" for key, value in row.items()}


def _jsonl(content: str, columns: set[str]) -> Iterator[dict[str, str] | None]:
    for line in filter(str.strip, content.split("\n")):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or not columns & row.keys():
            yield None
            continue
        yield {key: "" if value is None else str(value) for key, value in row.items()}


def _decode(path: Path) -> str:
    content = path.read_bytes()
    encodings = ["utf-8-sig", "cp1252"]
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ["utf-16"]
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{path.name} is neither UTF-8, UTF-16 nor Windows-1252: export it as UTF-8")
