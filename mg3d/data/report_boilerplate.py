"""Sentences that a system or a habit puts into every report, and fields of a template left blank.

They say nothing of the image, and being in thousands of reports they would teach a model that it
does not matter which report a volume has. A sentence is removed from its first word to its mark.
"""

import re

# To its mark; over a line's end only where the next line goes on in lower case.
_REST = r"(?:[^.!?\n]|\n(?=(?-i:[a-z]))|[.](?=\w))*[.!?]*"
_BEGINNINGS = (
    r"(?:\*+ *)?(?:final|preliminary|addended) report(?: *\*+)?[ \t]*$",
    r"(?:-+ *)?end of (?:the )?(?:report|impression|dictation|document)\b",
    r"(?:this|the) (?:report|document|dictation|study) (?:was|has been|is) (?:generated|created"
    r"|dictated|transcribed|prepared|produced|electronically|reviewed|signed|interpreted by)\b",
    r"(?:voice|speech)[- ]recognition (?:software|dictation|technology)\b",
    r"(?:portions|parts) of this (?:report|document|dictation|note)\b",
    r"(?:i|we),? (?:the [\w ]{3,40},? )?(?:have )?(?:personally )?(?:reviewed|interpreted)"
    r" (?:the|all|these) (?:images?|study|examination|films?)\b",
    r"(?:i|we) (?:have )?agree with (?:the|this|these)\b[^.\n]{0,60}\b(?:report|interpretation"
    r"|findings as stated)",
    r"(?:please )?(?:do not hesitate|feel free) to (?:contact|call)\b",
    r"thank you for (?:the |your )?(?:referral|referring|allowing|opportunity|kind referral)\b",
    r"if you have any questions?\b",
    r"dictated but not (?:read|signed|reviewed)\b",
    r"(?:electronically|digitally) (?:signed|approved|verified|authenticated)\b",
    r"all ct (?:scans|exams|examinations) (?:at this|are performed)\b",
    r"(?:dose|radiation) (?:reduction|optimi[sz]ation) techniques? (?:was|were|are|is)\b",
)
_SENTENCE = re.compile(
    rf"(?:(?<=[.!?])(?<!\d\.)\s|^)[ \t*_-]*(?:{'|'.join(_BEGINNINGS)}){_REST}",
    re.IGNORECASE | re.MULTILINE,
)
# `***` is a reporting system's "fill me in"; an empty box is a choice that nobody made.
_BLANK = re.compile(r"(?<!\*)\*{3}(?!\*)|\[\s{0,20}\]|\{\s{0,20}\}")


def boilerplate_spans(text: str) -> list[tuple[int, int]]:
    """Spans of boilerplate sentences of ``text``, in order, without overlap."""
    return [match.span() for match in _SENTENCE.finditer(text)]


def blank_field_spans(text: str) -> list[tuple[int, int]]:
    """Spans of template fields that were not filled in."""
    return [match.span() for match in _BLANK.finditer(text)]
