"""STAGE segment_sentences: findings and impression -> ordered sentences with stable ids.

The segmenter is pysbd's rules for English (Sadvilkar & Neumann 2020), which need no download, run
on each line of a section: `clean_reports` leaves one paragraph or list item a line, so a missing
final period ends at its line. Three corrections for radiology follow: an abbreviation that needs
its complement (``approx. 3 cm``) does not end a sentence, a period without a space before a
capital does, and list markers (``1.``, ``-``) are not part of the sentence.

Clause mode (spec/model 1.2, item 2) cuts each sentence after ``,`` and ``;`` outside parentheses;
the delimiter stays with its clause. Unlike the published code we keep ``1,5 cm`` whole.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from mg3d import paths
from mg3d.ledger import Ledger, Reason
from mg3d.parallel import progress
from mg3d.params import SegmentSentences, Sources

COLUMNS = [
    *("report_id", "accession_id", "sentence_id", "index", "section", "text", "start", "end"),
    "num_dropped",  # sentences of the report beyond max_sentences
]
REPORT_COLUMNS = ["report_id", "accession_id", "text_group", "num_sentences", "num_dropped"]
SECTIONS = ("findings", "impression")

Span = tuple[int, int]

_MARKER = re.compile(r"\s*(?:\(?\d{1,2}[.)]\s+|[-•*·–]+\s+)")
_MARKER_ONLY = re.compile(r"\s*(?:\(?\d{1,2}[.)]|[-•*·–]+)\s*")
# "1.2 cm.Next" without a space, and "a mass. 2 nodules": pysbd splits neither.
_ALSO_SPLIT = re.compile(r"(?<=[a-z0-9)%][.;])(?=[A-Z][a-z])|(?<=[a-z]{3}\.)\s(?=\d)")
_NEEDS_MORE = re.compile(
    r"(?:^|[\s(])(?:approx|appr|ca|cca|max|min|no|nos|nr|fig|figs|vs|cf|e\.g|i\.e|incl|resp|diam|dia"
    r"|dr|drs|prof|mr|mrs|ms|st|ser|im|img|seg|lat|ant|post|sup|inf|med|avg|est|vol)\.\s*$",
    re.IGNORECASE,
)
# After these only a number or a small letter goes on; "There is no. Then ..." is two sentences.
_NEEDS_NUMBER = re.compile(r"(?:^|[\s(])(?:nos?|nr|max|min|im|med|inf|est)\.\s*$", re.IGNORECASE)


@lru_cache(maxsize=1)
def _pysbd() -> Any:
    import pysbd

    return pysbd.Segmenter(language="en", clean=False)


# pysbd's time grows with the square of a text's length (10,000 sentences: over a minute), so a line
# longer than this goes to it in windows.
_WINDOW = 8000
_CLEAR_END = re.compile(r"(?<=[a-z0-9)][.!?])\s(?=[A-Z][a-z])")
_ANY_END = re.compile(r"(?<=[.!?])\s")


def _windows(line: str) -> list[Span]:
    """Spans of at most `_WINDOW` characters that tile ``line``, cut where a sentence surely ends.

    If a window has no such place (outside parentheses, no abbreviation), at its last mark with a
    blank; if it has none either, a window is longer, up to the next.
    """
    windows, start = [], 0
    while len(line) - start > _WINDOW:
        part = line[start : start + _WINDOW]
        clear = [
            match.start()
            for match in _CLEAR_END.finditer(part)
            if not _NEEDS_MORE.search(part, max(0, match.start() - 20), match.start())
        ]
        closed = (at for at in reversed(clear) if part.count("(", 0, at) == part.count(")", 0, at))
        marks = [match.start() for match in _ANY_END.finditer(part)]
        later = _ANY_END.search(line, start + _WINDOW)
        longer = later.start() - start if later else len(line) - start
        end = start + next(closed, marks[-1] if marks else longer)
        windows.append((start, end))
        start = end
    return [*windows, (start, len(line))]


def _pieces(text: str) -> list[Span]:
    """Spans by pysbd and `_ALSO_SPLIT`; together they hold all visible characters."""
    pieces: list[Span] = []
    position = 0
    for sentence in _pysbd().segment(text):
        start = text.find(sentence.strip(), position)
        if start < 0 or text[position:start].strip():
            return [(0, len(text))]  # pysbd rewrote the text: one long sentence, no loss
        end = start + len(sentence.strip())
        also = [match.start() for match in _ALSO_SPLIT.finditer(text, start, end)]
        pieces.extend(_cut(text, (start, end), also))
        position = end
    return [(0, len(text))] if text[position:].strip() else pieces


@lru_cache(maxsize=65536)
def _split_line(line: str) -> tuple[Span, ...]:
    """Spans of the sentences of one line; together they hold all its visible characters."""
    if not re.search(r"[.!?]\s*\S", line):  # nothing inside that could end a sentence
        return ((0, len(line)),)
    pieces = [
        (start + offset, end + offset)
        for offset, window_end in _windows(line)
        for start, end in _pieces(line[offset:window_end])
    ]
    merged: list[Span] = []
    for start, end in pieces:
        if merged and _belongs(line[slice(*merged[-1])].strip(), line[start:end].strip()):
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return tuple(merged)


def _belongs(before: str, after: str) -> bool:
    """Whether the piece ``after`` goes on with the sentence ``before``."""
    if _MARKER_ONLY.fullmatch(before):
        return True
    if after[0].islower() and " " not in before:  # "No. of nodules", "a. fib"
        return True
    goes_on = after[0].isdigit() or after[0].islower() or not _NEEDS_NUMBER.search(before)
    return goes_on and bool(_NEEDS_MORE.search(before))


def _cut(text: str, span: Span, points: Sequence[int] = ()) -> list[Span]:
    """Cut ``span`` at ``points``; trim the pieces, drop the empty ones."""
    pieces = []
    for start, end in pairwise([span[0], *points, span[1]]):
        piece = text[start:end]
        pieces.append((start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())))
    return [(start, end) for start, end in pieces if start < end]


def _clauses(text: str, span: Span) -> list[Span]:
    """Cut a sentence after each ``,`` and ``;`` outside parentheses and not between digits."""
    depth, points = 0, []
    for at in range(*span):
        depth = max(0, depth + (text[at] in "([") - (text[at] in ")]"))
        between_digits = text[at - 1 : at].isdigit() and text[at + 1 : at + 2].isdigit()
        if text[at] in ",;" and not depth and not between_digits:
            points.append(at + 1)
    return _cut(text, span, points)


def split_sentences(text: str, mode: Literal["sentence", "clause"] = "sentence") -> list[Span]:
    """Character spans of the sentences (or clauses) of ``text``, in order, without overlap.

    Every letter and digit of ``text`` lies in exactly one span, but for list markers.
    """
    spans: list[Span] = []
    offset = 0
    for line in text.split("\n"):
        for start, end in _split_line(line):
            marker = _MARKER.match(line, start, end)
            start = marker.end() if marker else start
            piece = (start + offset, end + offset)
            pieces = _clauses(text, piece) if mode == "clause" else _cut(text, piece)
            spans.extend(p for p in pieces if re.search(r"\w", text[slice(*p)]))
        offset += len(line) + 1
    return spans


def segment_sentences(
    source: Path, out: Path, params: SegmentSentences, sources: Sources
) -> Ledger:
    """Segment the reports of all sources under ``source`` (clean_reports), together.

    ``out/sentences.parquet`` has a row for each sentence.

    ``section_text[start:end] == text``; ``index`` counts through findings, then impression;
    ``sentence_id`` is ``report_id:index``. A report keeps its first ``max_sentences``; how many
    were cut stands in ``num_dropped`` of each of its rows. ``out/reports.parquet`` has one row per
    report that has sentences. Returns the ledger, also written to ``out``. Raises ValueError if
    there are no reports or no sentences.
    """
    import pandas as pd

    tables = [source / name / paths.REPORT_TABLE for name in sources.names]
    for table in tables:
        if not table.is_file():
            raise ValueError(f"no {table}: run clean_reports first, or `dvc repro`")
    reports = pd.concat(map(pd.read_parquet, tables), ignore_index=True)
    ledger = Ledger("segment_sentences", "report", reports["report_id"])
    rows: list[tuple[object, ...]] = []
    report_rows: list[tuple[object, ...]] = []
    records = reports.to_dict("records")
    for report in progress(iter(records), len(records), "segment_sentences: reports"):
        sentences = [
            (section, start, end)
            for section in SECTIONS
            for start, end in split_sentences(report[section], params.mode)
        ]
        report_id = report["report_id"]
        if not sentences:
            ledger.quarantine(report_id, Reason.NO_SENTENCES)
            continue
        ledger.use(report_id)
        num_dropped = max(0, len(sentences) - params.max_sentences)
        ids = (report_id, report["accession_id"], report["text_group"])
        report_rows.append((*ids, len(sentences) - num_dropped, num_dropped))
        for index, (section, start, end) in enumerate(sentences[: params.max_sentences]):
            text = report[section][start:end]
            sentence_id = f"{report_id}:{index}"
            rows.append(
                (
                    *(report_id, report["accession_id"], sentence_id, index, section, text),
                    *(start, end, num_dropped),
                )
            )
    sentences_table = pd.DataFrame(rows, columns=COLUMNS)
    with paths.atomic_write(out / paths.SENTENCE_TABLE) as temporary:
        sentences_table.to_parquet(temporary, index=False)
    with paths.atomic_write(out / paths.REPORT_TABLE) as temporary:
        pd.DataFrame(report_rows, columns=REPORT_COLUMNS).to_parquet(temporary, index=False)
    ledger.write(out)
    if not rows:
        raise ValueError(f"no sentence in any report under {source}: {ledger.summary()['reasons']}")
    return ledger
