"""STAGE clean_reports: reports of a source -> de-identified findings and impression.

In this order: repair characters and line ends (`report_text`); split at headings, cut out
boilerplate, blank fields and other languages (`report_sections`); undo hard wrapping; replace
dates, names, ids, phone numbers and addresses by placeholders such as ``[DATE]`` (`deidentify`). In
the result one line is one paragraph or list item, so a line end is always the end of a sentence.

No character disappears unnamed: of the visible characters of a repaired report, each is kept or
counted under the rule that left it out. Reports of the same words share a ``text_group``.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mg3d import paths
from mg3d.data.deidentify import deidentify
from mg3d.data.identity import pseudonym
from mg3d.data.report_sections import findings_of, impression_of, left_out, split_parts
from mg3d.data.report_text import normalise, num_visible
from mg3d.data.sources import ct_rate, ctrg_chest, dicom_export
from mg3d.data.sources.study import ReportRow
from mg3d.ledger import Ledger, Reason
from mg3d.params import CleanReports, CtRateReports, CtrgReports, ReportTable, SourceReports

COLUMNS = [
    *("report_id", "accession_id", "findings", "impression"),
    "text_group",  # equal for reports of the same words
    "num_dropped_characters",  # visible ones left out, placeholders' originals among them
    "dropped_characters",  # the same by rule, JSON
]

_NOT_GIVEN = re.compile(
    r"(?:not\s+(?:given|available|provided|stated|specified|applicable|reported)"
    r"|n\s?/\s?a|none(?:\s+(?:given|provided))?|nil|unknown|no\s+report|[-–—.]+)\.?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Report:
    """Text of the two sections, and the visible characters that each rule left out."""

    findings: str
    impression: str
    dropped: Counter[str]


def clean_report(row: ReportRow, params: CleanReports) -> Report | Reason:
    """Sections of one row of the export, or why there are none."""
    text = normalise(row.text).strip()
    if not text:
        return Reason.EMPTY_REPORT
    parts = split_parts(text)
    dropped = left_out(text, parts)
    given, kept = False, []
    for section in (findings_of(text, parts), impression_of(text, parts)):
        given = given or bool(section)
        if _NOT_GIVEN.fullmatch(section):
            dropped["not_given"] += num_visible(section)
            section = ""
        section, replaced = deidentify(section, row.columns)
        dropped += replaced
        kept.append(section)
    if not any(kept):
        if given:
            return Reason.REPORT_NOT_GIVEN
        return Reason.FOREIGN_LANGUAGE if dropped["foreign"] else Reason.EMPTY_REPORT
    if sum(map(len, kept)) < params.min_characters:
        return Reason.EMPTY_REPORT
    return Report(kept[0], kept[1], dropped)


_MARKS = {code: None for code in range(128) if not chr(code).isalnum()}


def text_group(findings: str, impression: str) -> str:
    """``text-`` and sixteen hex digits of the words: letters and digits in lower case, in order.

    Case, punctuation, wrapping and white space do not count; a placeholder is a word, so templates
    that differed in a date only are one group.
    """
    text = f"{findings}{impression}".lower()
    # Translating is ten times faster than asking each character, and most reports are ASCII.
    words = text.translate(_MARKS) if text.isascii() else "".join(filter(str.isalnum, text))
    return f"text-{hashlib.sha256(words.encode()).hexdigest()[:16]}"


def read_reports(source: SourceReports) -> Iterator[ReportRow | None]:
    """The reports of a source, one after the other; None for one that cannot be read."""
    match source:
        case ReportTable():
            return dicom_export.read_reports(source)
        case CtRateReports():
            return ct_rate.read_reports(source)
        case CtrgReports():
            return ctrg_chest.read_reports(source)


def clean_reports(source: SourceReports, out: Path, params: CleanReports) -> Ledger:
    """Clean the reports of ``source`` into ``out/reports.parquet``.

    Rows of one key with the same text count once; if their texts differ, nothing says which holds,
    and none is used. Returns the ledger, also written to ``out``, whose counts are the groups of
    equal reports and the characters left out. Raises ValueError if ``source`` is absent or lacks a
    column, or no report can be used.
    """
    import pandas as pd

    ledger = Ledger("clean_reports", "report")
    by_key: dict[str, list[ReportRow]] = defaultdict(list)
    for number, row in enumerate(read_reports(source)):
        if row is None or not row.key:
            row_id = pseudonym("row", str(number))
            ledger.declare(row_id)
            ledger.quarantine(row_id, Reason.UNREADABLE if row is None else Reason.NO_KEY)
            continue
        by_key[row.key].append(row)

    cleaned = []
    dropped: Counter[str] = Counter()
    for key, rows in by_key.items():
        report_id = pseudonym("report", key)
        ledger.declare(report_id)
        for copy in range(1, len(rows)):
            ledger.declare(f"{report_id}/{copy}")
            ledger.quarantine(f"{report_id}/{copy}", Reason.DUPLICATE_REPORT_KEY)
        if len({row.text.strip() for row in rows}) > 1:
            ledger.quarantine(report_id, Reason.DUPLICATE_REPORT_KEY, "texts differ")
            continue
        found = clean_report(rows[0], params)
        if isinstance(found, Reason):
            ledger.quarantine(report_id, found)
            continue
        ledger.use(report_id)
        dropped += found.dropped
        cleaned.append(
            (
                *(report_id, pseudonym("accession", key), found.findings, found.impression),
                text_group(found.findings, found.impression),
                found.dropped.total(),
                json.dumps(found.dropped, sort_keys=True),
            )
        )

    table = pd.DataFrame(cleaned, columns=COLUMNS).sort_values("report_id")
    with paths.atomic_write(out / paths.REPORT_TABLE) as temporary:
        table.to_parquet(temporary, index=False)
    groups = table["text_group"].value_counts()
    ledger.count("distinct_texts", len(groups))
    ledger.count("reports_of_a_text_that_others_have", int(groups[groups > 1].sum()))
    for rule, characters in dropped.items():
        ledger.count(f"characters_dropped_as_{rule}", characters)
    ledger.write(out)
    if not cleaned:
        raise ValueError(f"no usable report in {source.path}: {ledger.summary()['reasons']}")
    return ledger
