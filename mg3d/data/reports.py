"""STAGE clean_reports: report export -> de-identified findings and impression.

In this order: repair characters and line ends; split at headings; undo hard wrapping; replace
dates, names, ids, phone numbers and addresses by placeholders such as ``[DATE]``. In the result
one line is one paragraph or list item, so a line end is always the end of a sentence.

De-identification is by rules (titles, signatures, number formats, and the identifying columns of
the same row). It lowers risk; it is no certified anonymisation, and names in running text without
a title are found only if the export has them in a column.
"""

import html
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mg3d import paths
from mg3d.data.identity import pseudonym
from mg3d.data.sources.dicom_export import read_reports
from mg3d.ledger import Ledger, Reason
from mg3d.params import CleanReports

COLUMNS = ["report_id", "accession_id", "findings", "impression", "num_dropped_characters"]

# Heading spellings. Text under `other` is about the examination or the people, not the image.
HEADINGS = {
    "findings": r"findings?(?:\s+and\s+impressions?)?|observations?|body\s+of\s+report|report"
    r"|description",
    "impression": r"impressions?|conclusions?|opinion|summary|interpretation|assessment"
    r"|(?:final\s+)?diagnos[ie]s",
    "other": r"(?:clinical\s+)?(?:indications?|history)"
    r"|clinical\s+(?:information|details|data|question|notes?)"
    r"|reason\s+for\s+(?:the\s+)?(?:exam(?:ination)?|study|test|visit)"
    r"|(?:scan(?:ning)?\s+|imaging\s+)?techniques?|procedure|protocol|comparisons?|contrast"
    r"|exam(?:ination)?(?:\s+date)?|study\s+date|type\s+of\s+(?:exam(?:ination)?|study)"
    r"|recommendations?|patient(?:\s+(?:name|id))?|name|mrn|accession(?:\s+(?:number|no\.?))?"
    r"|dob|date(?:\s+of\s+\w+)?|(?:referring|ordering|attending)\s+(?:physician|doctor|clinician)"
    r"|(?:electronically\s+)?signed(?:\s+by)?|dictated(?:\s+by)?|(?:reported|read)\s+by"
    r"|radiologist",
}
_PREFIX = r"(?:(?:ct|chest|thorax|main|key|pertinent|final|radiologic(?:al)?|report)\s+){0,3}"
_NAME = _PREFIX + "(?:" + "|".join(f"(?P<{kind}>{names})" for kind, names in HEADINGS.items()) + ")"
# A heading starts a line with a capital and ends in a colon, a spaced dash or the line's end; or it
# stands within a line, with a colon, in capitals or capitalised after a sentence.
_DECORATION = r"[ \t*=_#\[\]-]*"
_COLON = rf"(?:\s?\([^)\n]*\))?{_DECORATION}:{_DECORATION}"
_LINE_HEADING = re.compile(
    rf"^{_DECORATION}(?=[A-Z])(?i:{_NAME})(?:{_COLON}|[ \t]+[-–—]+[ \t]+|{_DECORATION}$)",
    re.MULTILINE,
)
_SIGNATURE = re.compile(
    r"^(?:Electronically\s+signed|Signed|Dictated|Reported|Read|Verified|Transcribed|Approved)"
    r"\s+(?:by|on)\b:?",
    re.MULTILINE,
)
_INLINE_HEADING = re.compile(rf"(?<=\s)[*_]*(?=[A-Z])(?i:{_NAME}){_COLON}")

_NOT_GIVEN = re.compile(
    r"(?:not\s+(?:given|available|provided|stated|specified|applicable|reported)"
    r"|n\s?/\s?a|none(?:\s+(?:given|provided))?|nil|unknown|no\s+report|[-–—.]+)\.?",
    re.IGNORECASE,
)

_CHARACTERS = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00ad": None, "\u200b": None}
    | {"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\ufeff": None, "\t": " ", "\v": "\n"}
    | {"\f": "\n", "\x85": "\n", "\u2028": "\n", "\u2029": "\n"}
)
_LINE_BREAKS = re.compile(r"\r\n?|<br\s*/?>|\\\.br\\|_x000D_\n?", re.IGNORECASE)


def normalise(text: str) -> str:
    """Plain characters and ``\\n``: undoes HTML, HL7 and spreadsheet escapes; NFC."""
    text = html.unescape(_LINE_BREAKS.sub("\n", text)).translate(_CHARACTERS)
    text = unicodedata.normalize("NFC", text)
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")


@dataclass(frozen=True)
class Sections:
    """Unwrapped text of the two sections, and how many characters belonged to neither."""

    findings: str
    impression: str
    num_dropped_characters: int


def split_sections(text: str) -> Sections:
    """Split normalised text at its headings (spellings in `HEADINGS`), several of a kind joined.

    A report without any heading is all findings. If no heading says findings, they are the
    paragraphs that follow another section after a blank line, else the text before the first
    heading.
    """
    parts: list[tuple[str, str]] = []
    kind, start = "preamble", 0
    for heading_kind, begin, end in _headings(text):
        parts.append((kind, text[start:begin]))
        kind, start = heading_kind, end
    parts.append((kind, text[start:]))

    def of(wanted: str) -> list[str]:
        return [part for part_kind, part in parts if part_kind == wanted]

    findings = unwrap("\n\n".join(of("findings")))
    if not findings and "findings" not in dict(parts):
        tails = (re.split(r"\n[ ]*\n", part, maxsplit=1)[1:] for part in of("other"))
        findings = unwrap("\n\n".join("".join(tail) for tail in tails))
        findings = findings or unwrap("\n\n".join(of("preamble")))
    impression = unwrap("\n\n".join(of("impression")))
    kept = len(_squeeze(findings)) + len(_squeeze(impression))
    return Sections(findings, impression, max(0, len(_squeeze(text)) - kept))


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _headings(text: str) -> list[tuple[str, int, int]]:
    """(kind, start, end) of every heading, in order, without overlap."""
    matches = list(_LINE_HEADING.finditer(text))
    for match in _INLINE_HEADING.finditer(text):
        after_sentence = text[: match.start()].rstrip()[-1:] in tuple(".!?:;)]")
        if after_sentence or match.group().partition("(")[0].isupper():
            matches.append(match)
    spans = [
        (match.start(), match.end(), next(kind for kind in HEADINGS if match.group(kind)))
        for match in matches
    ]
    spans += [(match.start(), match.end(), "other") for match in _SIGNATURE.finditer(text)]
    found: list[tuple[str, int, int]] = []
    for start, end, kind in sorted(spans):
        if not found or start >= found[-1][2]:
            found.append((kind, start, end))
    return found


_LIST_ITEM = re.compile(r"(?:\d{1,2}[.)]\s|[-•*·–]\s)")


def unwrap(text: str) -> str:
    """Undo hard wrapping; one line per paragraph or list item, single spaces.

    A line break was a wrap if the next line starts in lower case, or if this line does not end a
    sentence and the next line's first word would not have fitted under the longest line's width.
    ``3-\\nD`` becomes ``3-D``; a line that ends in a colon keeps what it introduces.
    """
    lines = [re.sub(r" +", " ", line).strip() for line in text.split("\n")]
    width = max(map(len, lines))
    done: list[str] = []
    previous = ""
    for line in lines:
        if previous and line and _continues(previous, line, width):
            hyphenated = re.search(r"\w-$", previous)
            done[-1] += line if hyphenated else f" {line}"
        elif line:
            done.append(line)
        previous = line
    return "\n".join(done)


def _continues(line: str, following: str, width: int) -> bool:
    if _LIST_ITEM.match(following):
        return False
    if following[0].islower() or line.endswith((":", ",")) or re.search(r"\w-$", line):
        return True
    full = len(line) + 1 + len(following.split(" ", 1)[0]) > width
    return full and width >= 40 and not line.endswith((".", "!", "?"))


_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sep(?:t(?:ember)?)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_YEAR = r"(?:19|20)\d\d"
_PERSON = r"[A-Z](?:[a-zà-ÿ'’-]+|\.|[A-Z'’-]+)(?:[A-Z][a-z]+)?"
_RULES: list[tuple[str, re.Pattern[str]]] = [
    ("[EMAIL]", re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")),
    (
        "[DATE]",
        re.compile(
            rf"\b(?:{_YEAR}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[-/.]\d{{1,2}}[-/.]{_YEAR}"
            rf"|\d{{1,2}}/\d{{1,2}}/\d\d|\d\d\.\d\d\.\d\d"
            rf"|\d{{1,2}}(?:st|nd|rd|th)?[ -](?:of )?{_MONTH},?[ -]{_YEAR}"
            rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? {_YEAR}"
            rf"|{_MONTH},? {_YEAR}|\d{{1,2}}-{_MONTH}-\d\d)(?![\d/]|\s?(?:mm|cm)\b)",
            re.IGNORECASE,
        ),
    ),
    # A run of 17 to 64 digits and dots is a UID (DICOM PS3.5 9.1).
    ("[ID]", re.compile(r"\b[0-2](?:\.\d+){4,}\b|\b\d{3}-\d\d-\d{4}\b")),
    (
        "[PHONE]",
        re.compile(
            r"(?<![\w.])(?:\+\d{1,3}[ ./-]?)(?:\(?\d{1,5}\)?[ ./-]?){2,6}\d(?!\w)"
            r"|\(\d{3}\) ?\d{3}[ .-]\d{4}\b|\b\d{3}[ .-]\d{3}[ .-]\d{4}\b"
            r"|(?<=\bext )\d{3,6}\b|(?<=\bext\. )\d{3,6}\b|(?<=\bpager )\d{3,6}\b"
            r"|(?<=\bextension )\d{3,6}\b|(?<=\bphone )\d{3,}\b|(?<=\btel\. )\d{3,}\b"
        ),
    ),
    (
        r"\g<key>[ID]",
        re.compile(
            r"(?P<key>\b(?:MRN|(?:patient|medical record|accession|case|order|study|hospital)"
            r"(?: (?:id|no\.?|number|#))|accession|insurance no\.?)(?: ?[:#])? ?)"
            r"(?=[\w-]*\d)[\w-]{3,}",
            re.IGNORECASE,
        ),
    ),
    ("[ID]", re.compile(r"\b[A-Z]{0,4}\d{7,}\b")),
    ("[NAME]", re.compile(r"\b[A-Za-z'-]+\^[A-Za-z'-]+(?:\^[A-Za-z'.-]*)*")),
    (
        r"\g<title> [NAME]",
        re.compile(
            r"\b(?P<title>(?:Drs?|Prof|Mr|Mrs|Ms|Miss|Sister|Nurse)\b\.?|DR\.|PROF\.|MRS\.)"
            rf"(?: (?:Dr|Prof)\.?)* {_PERSON}(?:(?: and)? {_PERSON}){{0,2}}"
        ),
    ),
    (
        "[NAME]",
        re.compile(rf"\b(?:{_PERSON},? ){{1,3}}(?:MD|M\.D\.|DO|FRCR|FRANZCR|MBBS)(?!\w)"),
    ),
    (
        r"\g<key>[NAME]",
        re.compile(
            r"(?P<key>\b(?:[Pp]atient(?:'s)? name|[Ss]igned by|[Dd]ictated by|[Rr]eported by"
            r"|[Rr]ead by|[Rr]eviewed by|[Rr]eferred by)[: ]+)(?!(?:Drs?|Prof|Mr|Mrs|Ms)\b)"
            rf"{_PERSON}(?: {_PERSON}){{0,2}}"
        ),
    ),
]
_NAME_COLUMN = re.compile(r"name|physician|doctor|radiologist|referr|author", re.IGNORECASE)
_ID_COLUMN = re.compile(r"mrn|id$|accession|number|birth|dob|phone", re.IGNORECASE)


def deidentify(text: str, row: dict[str, str] | None = None) -> str:
    """Replace dates, names, ids, phone numbers and e-mail addresses by placeholders.

    ``row`` is the export's row: values of its identifying columns are replaced wherever they occur.
    """
    for column, value in (row or {}).items():
        value = value.strip()
        if _NAME_COLUMN.search(column) and len(value) < 100:
            for part in re.findall(r"[^\W\d_][\w'’-]{2,}", value):
                spellings = {part.capitalize(), part.upper(), part} - {part.lower()}
                for spelling in sorted(spellings):
                    text = re.sub(rf"\b{re.escape(spelling)}\b", "[NAME]", text)
        elif _ID_COLUMN.search(column) and 4 <= len(value) < 100:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "[ID]", text)
    for placeholder, pattern in _RULES:
        text = pattern.sub(placeholder, text)
    return re.sub(r"\[NAME\](?:[ ,^]+\[NAME\])+", "[NAME]", text)


def clean_report(row: dict[str, str], params: CleanReports) -> Sections | Reason:
    """Sections of one row of the export, or why there are none."""
    text = normalise(row[params.text_column]).strip()
    if not text:
        return Reason.EMPTY_REPORT
    sections = split_sections(text)
    findings, impression = (
        "" if _NOT_GIVEN.fullmatch(section) else deidentify(section, row)
        for section in (sections.findings, sections.impression)
    )
    if not findings and not impression:
        given = sections.findings or sections.impression
        return Reason.REPORT_NOT_GIVEN if given else Reason.EMPTY_REPORT
    if len(findings) + len(impression) < params.min_characters:
        return Reason.EMPTY_REPORT
    return Sections(findings, impression, sections.num_dropped_characters)


def clean_reports(source: Path, out: Path, params: CleanReports) -> Ledger:
    """Clean the report export ``source`` (CSV or JSON lines) into ``out/reports.parquet``.

    Rows of one accession number with the same text count once; if their texts differ, nothing says
    which holds, and none is used. Returns the ledger, also written to ``out``. Raises ValueError if
    ``source`` is absent or lacks a column, or no report can be used.
    """
    import pandas as pd

    ledger = Ledger("clean_reports", "report")
    by_key: dict[str, list[dict[str, str]]] = defaultdict(list)
    export = read_reports(source, params.accession_column, params.text_column)
    for number, row in enumerate(export):
        key = "" if row is None else row.get(params.accession_column, "").strip()
        if row is None or not key:
            row_id = pseudonym("row", str(number))
            ledger.declare(row_id)
            ledger.quarantine(row_id, Reason.UNREADABLE if row is None else Reason.NO_KEY)
            continue
        by_key[key].append({params.text_column: "", **row})

    cleaned = []
    for key, rows in by_key.items():
        report_id = pseudonym("report", key)
        ledger.declare(report_id)
        for copy in range(1, len(rows)):
            ledger.declare(f"{report_id}/{copy}")
            ledger.quarantine(f"{report_id}/{copy}", Reason.DUPLICATE_REPORT_KEY)
        if len({row[params.text_column].strip() for row in rows}) > 1:
            ledger.quarantine(report_id, Reason.DUPLICATE_REPORT_KEY, "texts differ")
            continue
        found = clean_report(rows[0], params)
        if isinstance(found, Reason):
            ledger.quarantine(report_id, found)
            continue
        ledger.use(report_id)
        accession_id = pseudonym("accession", key)
        cleaned.append(
            (
                *(report_id, accession_id, found.findings, found.impression),
                found.num_dropped_characters,
            )
        )

    table = pd.DataFrame(cleaned, columns=COLUMNS).sort_values("report_id")
    with paths.atomic_write(out / paths.REPORT_TABLE) as temporary:
        table.to_parquet(temporary, index=False)
    ledger.write(out)
    if not cleaned:
        raise ValueError(f"no usable report in {source}: {ledger.summary()['reasons']}")
    return ledger
