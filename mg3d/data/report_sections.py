"""A report cut into parts: every character belongs to exactly one, and each part names its rule.

Kept are ``findings``, ``impression`` and ``addendum``. All other rules say why a part is left out:
it is about the examination or the people and not about the image (``history``, ``technique``,
``comparison``, ``recommendation``, ``administrative``, ``signature``), stands before the first
heading of a report that has findings (``preamble``), is a ``heading``, ``boilerplate``, a
``blank_field`` of a template, or ``foreign`` (in another language).

Addenda are kept: what stands under an addendum's own headings goes to those sections, the rest to
the end of the impression, by number if all have one, else in the order of the text.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from mg3d.data.report_boilerplate import blank_field_spans, boilerplate_spans
from mg3d.data.report_language import foreign_spans
from mg3d.data.report_text import num_visible, unwrap

# Heading spellings.
HEADINGS = {
    "findings": r"findings?(?:(?:\s+and\s+|\s?[/&]\s?)impressions?)?|observations?|results?"
    r"|body\s+of\s+report|report|description",
    "impression": r"impress?ions?(?:\s?[/&]\s?(?:plan|conclusions?))?|conclusions?|opinion|summary"
    r"|interpretation|assessment|(?:final\s+)?diagnos[ie]s",
    "resume": r"end\s+of\s+addend(?:um|a)|addendum\s+ends?",
    "addendum": r"addend(?:um|a)(?:\s+report)?(?:\s*(?:\#|no\.?|number)?\s*(?P<number>\d{1,2}))?"
    r"(?:\s+begins?)?",
    "history": r"(?:clinical\s+)?(?:indications?|history)"
    r"|clinical\s+(?:information|details|data|question|notes?)"
    r"|reason\s+for\s+(?:the\s+)?(?:exam(?:ination)?|study|test|visit)",
    "technique": r"(?:scan(?:ning)?\s+|imaging\s+)?techniques?|procedure|protocol|contrast"
    r"|exam(?:ination)?(?:\s+date)?|type\s+of\s+(?:exam(?:ination)?|study)|(?:radiation\s+)?dose",
    "comparison": r"comparisons?(?:\s+stud(?:y|ies))?|prior\s+stud(?:y|ies)",
    "recommendation": r"recommendations?",
    "administrative": r"study\s+date|patient(?:\s+(?:name|id))?|name|mrn"
    r"|accession(?:\s+(?:number|no\.?))?|dob|date(?:\s+of\s+\w+)?"
    r"|(?:referring|ordering|attending)\s+(?:physician|doctor|clinician)",
    "signature": r"(?:electronically\s+)?signed(?:\s+by)?|dictated(?:\s+by)?"
    r"|(?:reported|read|verified|transcribed|approved)\s+by|radiologist|resident|attending"
    r"|transcriptionist",
}
KEPT = ("findings", "impression", "addendum")
# Cut out of the middle of a kept part, and what finds them, in this order.
CARVED: dict[str, Callable[[str], Iterable[tuple[int, int]]]] = {
    "boilerplate": boilerplate_spans,
    "blank_field": blank_field_spans,
    "foreign": foreign_spans,
}

_PREFIX = (
    r"(?:(?:ct|chest|thorax|main|key|pertinent|final|radiologic(?:al)?|report)[ \t]+)"
    r"{0,3}"
)
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
# A banner over a report, not the heading of its text.
_BANNER = re.compile(r"\W*(?:final|preliminary)\s+report[^\w:]*", re.IGNORECASE)
_BLANK_LINE = re.compile(r"\n[ ]*\n")


@dataclass(frozen=True)
class Part:
    """``text[start:end]`` of a normalised report, and the rule that keeps it or leaves it out."""

    rule: str
    start: int
    end: int
    number: int = 0  # of an addendum, 0 if it has none


def split_parts(text: str) -> list[Part]:
    """Cut normalised text at its headings (spellings in `HEADINGS`); the parts tile ``text``.

    A report without any heading is all findings. If no heading says findings, they are the
    paragraphs that follow another section after a blank line, else the text before the first
    heading.
    """
    parts: list[Part] = []
    rule, number, start, before = "preamble", 0, 0, "preamble"
    for kind, heading_number, begin, end in _headings(text):
        parts.append(Part(rule, start, begin, number))
        parts.append(Part("signature" if kind == "signature" else "heading", begin, end))
        if kind == "addendum":
            before = rule if rule != "addendum" else before
        rule = before if kind == "resume" else kind
        number, start = heading_number, end
    parts.append(Part(rule, start, len(text), number))
    if not any(part.rule == "findings" for part in parts):
        parts = _without_findings_heading(text, parts)
    for carved, find_spans in CARVED.items():
        parts = [
            piece
            for part in parts
            for piece in (_carve(text, part, carved, find_spans) if part.rule in KEPT else [part])
        ]
    return [part for part in parts if part.start < part.end]


def _without_findings_heading(text: str, parts: list[Part]) -> list[Part]:
    opened: list[Part] = []
    for part in parts:
        blank = _BLANK_LINE.search(text, part.start, part.end)
        about_the_image = part.rule in (*KEPT, "preamble", "heading", "signature")
        if about_the_image or blank is None or not text[blank.end() : part.end].strip():
            opened.append(part)
        else:
            opened.append(replace(part, end=blank.end()))
            opened.append(Part("findings", blank.end(), part.end))
    if any(part.rule == "findings" for part in opened):
        return opened
    return [replace(p, rule="findings") if p.rule == "preamble" else p for p in opened]


def _carve(
    text: str, part: Part, rule: str, find_spans: Callable[[str], Iterable[tuple[int, int]]]
) -> list[Part]:
    pieces, position = [], part.start
    for start, end in find_spans(text[part.start : part.end]):
        pieces.append(replace(part, start=position, end=part.start + start))
        pieces.append(Part(rule, part.start + start, part.start + end))
        position = part.start + end
    return [*pieces, replace(part, start=position)]


def _headings(text: str) -> list[tuple[str, int, int, int]]:
    """(kind, number, start, end) of every heading, in order, without overlap."""
    lines = _LINE_HEADING.finditer(text)
    matches = [match for match in lines if not _BANNER.fullmatch(match.group())]
    for match in _INLINE_HEADING.finditer(text):
        before = text[max(0, match.start() - 100) : match.start()].rstrip()
        after_sentence = before[-1:] in tuple(".!?:;)]")
        if after_sentence or match.group().partition("(")[0].isupper():
            matches.append(match)
    spans = [
        (
            *(match.start(), match.end(), next(kind for kind in HEADINGS if match.group(kind))),
            int(match.group("number") or 0),
        )
        for match in matches
    ]
    spans += [(match.start(), match.end(), "signature", 0) for match in _SIGNATURE.finditer(text)]
    found: list[tuple[str, int, int, int]] = []
    for start, end, kind, number in sorted(spans):
        if not found or start >= found[-1][3]:
            found.append((kind, number, start, end))
    return found


def findings_of(text: str, parts: list[Part]) -> str:
    """Unwrapped findings."""
    return unwrap(_joined(text, parts, "findings"))


def impression_of(text: str, parts: list[Part]) -> str:
    """Unwrapped impression, then the addenda."""
    addenda: list[tuple[int, list[Part]]] = []
    open_addendum = False
    for part in parts:
        if part.rule == "addendum" and not open_addendum:
            addenda.append((part.number, []))
        open_addendum = part.rule == "addendum" or (open_addendum and part.rule in CARVED)
        if open_addendum:
            addenda[-1][1].append(part)
    if all(number for number, _ in addenda):
        addenda.sort(key=lambda addendum: addendum[0])
    texts = [_joined(text, parts, "impression")]
    texts += [_joined(text, addendum, "addendum") for _, addendum in addenda]
    return unwrap("\n\n".join(texts))


def _joined(text: str, parts: list[Part], rule: str) -> str:
    """The parts of a section: a blank line between two, a blank where one was cut out."""
    pieces = []
    for part in parts:
        cut_out = " " if part.rule in CARVED else "\n\n"
        pieces.append(text[part.start : part.end] if part.rule == rule else cut_out)
    return "".join(pieces)


def left_out(text: str, parts: list[Part]) -> Counter[str]:
    """Visible characters of ``text`` that each rule leaves out."""
    removed: Counter[str] = Counter()
    for part in parts:
        if part.rule not in KEPT:
            removed[part.rule] += num_visible(text[part.start : part.end])
    return +removed
