"""De-identification of report text by rules, after the spirit of DICOM PS3.15's basic profile.

Replaced by placeholders such as ``[DATE]``: dates (with or without a year, if a month is named),
names after a title, a credential or a word such as "signed by", numbers that identify, telephone
numbers, e-mail and web addresses, ages over 89, and whatever stands in the identifying columns of
the same row.

What rules cannot catch, and a person must look for in a sample: a name in running text without
title, credential or column; a name in lower case; a misspelt name; an identifier that looks like a
measurement (under seven digits, without a word such as MRN); ``3/12`` for the third of December
(it reads as image 3 of 12); "yesterday", "at Easter"; a hospital, a place, an occupation; a rare
disease or a history that only one person has.
"""

import re
from collections import Counter

from mg3d.data.report_text import num_visible

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sep(?:t(?:ember)?)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?"
    r"|Januar|Februar|März|Mai|Juni|Juli|Oktober|Dezember"
    r"|Ocak|Şubat|Mart|Nisan|Mayıs|Haziran|Temmuz|Ağustos|Eylül|Ekim|Kasım|Aralık)\.?"
)
_GERMAN_MONTH = (
    r"(?:Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember)"
)
# Without a year, and so not "May", "March" and "Mar", which are also words.
_MONTH_ONLY = (
    r"(?:January|February|April|June|July|August|September|October|November|December"
    r"|(?:Jan|Feb|Apr|Aug|Sept?|Oct|Nov|Dec)\b(?:\.(?= [\da-z]))?)"
)
_TIME = r"(?:(?:[T,]| at|,? )\s?\d{1,2}:\d\d(?::\d\d)?(?:\.\d+)?(?: ?[AP]M| ?h\b|Z)?)?"
_YEAR = r"(?:19|20)\d\d"
_EXTENDED = [chr(code) for code in range(0x100, 0x180)]  # Turkish, Polish, Czech ...
_UPPER = "A-ZÀ-ÖØ-Þ" + "".join(letter for letter in _EXTENDED if letter.isupper())
_LOWER = "a-zß-öø-ÿ" + "".join(letter for letter in _EXTENDED if letter.islower())
_PARTICLE = r"(?:(?:van|von|der|den|de|da|del|della|di|dos|bin|al|el|la|le|ter|ten)[ -]){0,3}"
_PERSON = rf"{_PARTICLE}[{_UPPER}](?:[{_LOWER}'’-]+|\.|[{_UPPER}'’-]+)(?:[{_UPPER}][{_LOWER}]+)*"
# (name, what stands instead, what is found), in this order.
_RULES: list[tuple[str, str, re.Pattern[str]]] = [
    ("email", "[EMAIL]", re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")),
    ("web", "[WEB]", re.compile(r"\b(?:https?://|www\.)\S+[\w/]", re.IGNORECASE)),
    (
        "date",
        "[DATE]",
        re.compile(
            rf"\b(?:{_YEAR}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[-/.]\d{{1,2}}[-/.]{_YEAR}"
            rf"|\d{{1,2}}/\d{{1,2}}/\d\d|\d\d\.\d\d\.\d\d|\d\d-\d\d-\d\d"
            rf"|\d{{1,2}}(?:st|nd|rd|th)?[ -](?:of )?{_MONTH},?[ -]{_YEAR}"
            rf"|\d{{1,2}}\. {_GERMAN_MONTH} {_YEAR}"
            rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? {_YEAR}"
            rf"|{_MONTH},? {_YEAR}|\d{{1,2}}-{_MONTH}-\d\d){_TIME}(?![\d/]|\s?(?:mm|cm)\b)",
            re.IGNORECASE,
        ),
    ),
    (
        "date",
        "[DATE]",
        re.compile(
            rf"(?<![\w.])(?:{_MONTH_ONLY} \d{{1,2}}(?:st|nd|rd|th)?(?! ?(?:mm|cm)\b)"
            rf"|\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {_MONTH_ONLY})(?!\w)",
        ),
    ),
    # A run of 17 to 64 digits and dots is a UID (DICOM PS3.5 9.1).
    ("id", "[ID]", re.compile(r"\b[0-2](?:\.\d+){4,}\b|\b\d{3}-\d\d-\d{4}\b")),
    (
        "phone",
        "[PHONE]",
        re.compile(
            r"(?<![\w.])(?:\+\d{1,3}[ ./-]?)(?:\(?\d{1,5}\)?[ ./-]?){2,6}\d(?!\w)"
            r"|\(\d{3}\) ?\d{3}[ .-]\d{4}\b|\b\d{3}[ .-]\d{3}[ .-]\d{4}\b"
            r"|(?<=\bext )\d{3,6}\b|(?<=\bext\. )\d{3,6}\b|(?<=\bpager )\d{3,6}\b"
            r"|(?<=\bextension )\d{3,6}\b|(?<=\bphone )\d{3,}\b|(?<=\btel\. )\d{3,}\b"
        ),
    ),
    (
        "id",
        r"\g<key>[ID]",
        re.compile(
            r"(?P<key>\b(?:MRN|(?:patient|medical record|accession|case|order|study|hospital)"
            r"(?: (?:id|no\.?|number|#))|accession|insurance no\.?)(?: ?[:#])? ?)"
            r"(?=[\w-]*\d)[\w-]{3,}",
            re.IGNORECASE,
        ),
    ),
    ("id", "[ID]", re.compile(r"\b[A-Z]{0,4}\d{7,}\b")),
    (
        "age",
        "[AGE]",
        re.compile(
            r"\b(?:9\d|1[0-2]\d)(?=[- ]?(?:years?|yrs?)[- ]?old\b|[- ]?y\.?/?o\b)", re.IGNORECASE
        ),
    ),
    ("name", "[NAME]", re.compile(r"\b[A-Za-z'-]+\^[A-Za-z'-]+(?:\^[A-Za-z'.-]*)*")),
    (
        "name",
        r"\g<title> [NAME]",
        re.compile(
            r"\b(?P<title>(?:Drs?|Prof|Mr|Mrs|Ms|Miss|Sister|Nurse)\b\.?|DR\.|PROF\.|MRS\.)"
            rf"(?: (?:Dr|Prof)\.?)* {_PERSON}(?:(?: and)? {_PERSON}){{0,2}}"
        ),
    ),
    (
        "name",
        "[NAME]",
        re.compile(rf"\b(?:{_PERSON},? ){{1,3}}(?:MD|M\.D\.|DO|FRCR|FRANZCR|MBBS)(?!\w)"),
    ),
    (
        "name",
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


_PLACEHOLDER = re.compile(r"\[(?:EMAIL|WEB|DATE|ID|PHONE|AGE|NAME)\]")


def deidentify(text: str, row: dict[str, str] | None = None) -> tuple[str, Counter[str]]:
    """Text with placeholders, and how many visible characters each rule replaced.

    ``row`` is the export's row: values of its identifying columns are replaced wherever they occur.
    """
    replaced: Counter[str] = Counter()
    for rule, pattern, placeholder in [*_column_rules(row or {}), *_text_rules()]:
        after, count = pattern.subn(placeholder, text)
        if count:
            replaced[rule] += num_identified(text) - num_identified(after)
            text = after
    return text, +replaced


def num_identified(text: str) -> int:
    """Visible characters of ``text`` without its placeholders."""
    return num_visible(_PLACEHOLDER.sub("", text))


def _text_rules() -> list[tuple[str, re.Pattern[str], str]]:
    rules = [(rule, pattern, placeholder) for rule, placeholder, pattern in _RULES]
    return [*rules, ("name", re.compile(r"\[NAME\](?:[ ,^]+\[NAME\])+"), "[NAME]")]


def _column_rules(row: dict[str, str]) -> list[tuple[str, re.Pattern[str], str]]:
    rules = []
    for column, value in row.items():
        value = value.strip()
        if _NAME_COLUMN.search(column) and len(value) < 100:
            for part in re.findall(r"[^\W\d_][\w'’-]{2,}", value):
                spellings = {part.capitalize(), part.upper(), part} - {part.lower()}
                found = "|".join(re.escape(spelling) for spelling in sorted(spellings))
                rules.append(("name", re.compile(rf"\b(?:{found})\b"), "[NAME]"))
        elif _ID_COLUMN.search(column) and 4 <= len(value) < 100:
            found = rf"(?<!\w){re.escape(value)}(?!\w)"
            rules.append(("id", re.compile(found), "[ID]"))
    return rules
