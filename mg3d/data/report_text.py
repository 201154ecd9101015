"""Characters of a report: escapes undone, hard wrapping undone, visible characters counted."""

import html
import re
import unicodedata

_CHARACTERS = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00ad": None, "\u200b": None}
    | {"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\ufeff": None, "\t": " ", "\v": "\n"}
    | {"\f": "\n", "\x85": "\n", "\u2028": "\n", "\u2029": "\n"}
)
_LINE_BREAKS = re.compile(
    r"\r\n?|<br\s*/?>|</?(?:p|div|li)(?:\s[^<>]*)?>|\\\.br\\|_x000D_\n?", re.IGNORECASE
)
_TAGS = re.compile(r"</?(?:span|b|i|u|em|strong|font|ul|ol|html|body)(?:\s[^<>]*)?>", re.I)


def normalise(text: str) -> str:
    """Plain characters and ``\\n``: undoes HTML, HL7 and spreadsheet escapes; NFC."""
    text = _TAGS.sub("", _LINE_BREAKS.sub("\n", text))
    text = html.unescape(text).translate(_CHARACTERS)
    text = unicodedata.normalize("NFC", text)
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")


def num_visible(text: str) -> int:
    """Characters that are not white space: what no step may lose without a rule's name."""
    return len("".join(text.split()))


_LIST_ITEM = re.compile(r"(?:\d{1,2}[.)]\s|[-•*·–]\s)")


def unwrap(text: str) -> str:
    """Undo hard wrapping; one line per paragraph or list item, single spaces.

    A line break was a wrap if the next line starts in lower case, or if this line does not end a
    sentence and the next line's first word would not have fitted under the longest line's width.
    ``3-\\nD`` becomes ``3-D``; a line that ends in a colon keeps what it introduces. Only white
    space changes.
    """
    lines = [re.sub(r" +", " ", line).strip() for line in text.split("\n")]
    width = max(map(len, lines))
    paragraphs: list[list[str]] = []
    previous = ""
    for line in lines:
        if previous and line and _continues(previous, line, width):
            hyphenated = re.search(r"\w-$", previous)
            paragraphs[-1].append(line if hyphenated else f" {line}")
        elif line:
            paragraphs.append([line])
        previous = line
    return "\n".join("".join(paragraph) for paragraph in paragraphs)


def _continues(line: str, following: str, width: int) -> bool:
    if _LIST_ITEM.match(following):
        return False
    if following[0].islower() or line.endswith((":", ",")) or re.search(r"\w-$", line):
        return True
    full = len(line) + 1 + len(following.split(" ", 1)[0]) > width
    return full and width >= 40 and not line.endswith((".", "!", "?"))
