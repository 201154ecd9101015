"""A sheet of generated reports beside the reference and three slices."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

AGREED = "green"
LINE, NUM_LINES = 62, 13
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Generated:
    """One case: three 2D slices (rows, columns), both texts, and the findings each asserts."""

    slices: Sequence[np.ndarray]
    reference: str
    hypothesis: str
    reference_findings: frozenset[str]
    hypothesis_findings: frozenset[str]


def report_sheet(cases: Sequence[Generated]) -> Figure:
    """One row per case: slices, reference, hypothesis. Green: words that both say in this order,
    findings that both assert; orange: the reference's alone; red: the generated text's alone."""
    num_rows = max(1, len(cases))
    figure = Figure(figsize=(13.5, 2.8 * num_rows), layout="constrained")
    grid = figure.add_gridspec(num_rows, 5, width_ratios=[1, 1, 1, 3.1, 3.1])
    for row, case in enumerate(cases):
        for column, plane in enumerate(case.slices[:3]):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(plane, cmap="gray", interpolation="nearest")
            axes.axis("off")
        both = case.reference_findings & case.hypothesis_findings
        reference = (case.reference, case.hypothesis, case.reference_findings, "darkorange")
        generated = (case.hypothesis, case.reference, case.hypothesis_findings, "red")
        for column, name, (text, other, own, colour) in (
            (3, "reference", reference),
            (4, "generated", generated),
        ):
            axes = figure.add_subplot(grid[row, column])
            axes.axis("off")
            _write(axes, 0.95, name, "black")
            text, shared = shared_characters(text, other)
            for at, layers in enumerate(zip(*wrapped(text, shared), strict=True)):
                for line, paint in zip(layers, (AGREED, colour), strict=True):
                    _write(axes, 0.88 - 0.055 * at, line, paint)
            findings = {AGREED: both, colour: own - both}
            for at, (paint, title) in enumerate(((AGREED, "both"), (colour, f"{name} only"))):
                names = ", ".join(sorted(findings[paint])) or "-"
                line = textwrap.shorten(f"{title}: {names}", LINE + 24, placeholder=" ...")
                _write(axes, 0.08 - 0.06 * at, line, paint)
    return figure


def shared_characters(text: str, other: str) -> tuple[str, list[bool]]:
    """``text`` on one line of printable characters, and which of them belong to a word that
    ``other`` has too, in the same order (the longest common runs, whatever the case)."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    words = list(_WORD.finditer(text))
    ours, theirs = [w.group().lower() for w in words], [w.lower() for w in _WORD.findall(other)]
    shared = [False] * len(text)
    for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        for word in words[block.a : block.a + block.size]:
            shared[word.start() : word.end()] = [True] * len(word.group())
    return text, shared


def wrapped(text: str, shared: Sequence[bool]) -> tuple[list[str], list[str]]:
    """The lines of ``text`` in a fixed width, once with the characters that are ``shared`` and once
    with the others; spaces stand for what the other one has, so that the two overlay."""
    lines = textwrap.wrap(text, LINE) or [""]
    starts = [0]
    for line, _ in pairwise(lines):  # textwrap breaks at one space, or within a long word
        end = starts[-1] + len(line)
        starts.append(end + (text[end : end + 1] == " "))
    if len(lines) > NUM_LINES:
        lines = [*lines[: NUM_LINES - 1], "..."]
    marked, rest = [], []
    for start, line in zip(starts, lines, strict=False):
        flags = shared[start : start + len(line)] if line != "..." else [False] * 3
        marked.append("".join(c if f else " " for c, f in zip(line, flags, strict=True)))
        rest.append("".join(" " if f else c for c, f in zip(line, flags, strict=True)))
    return marked, rest


def _write(axes: Axes, height: float, line: str, colour: str) -> None:
    """One line; the figure's layout must not make room for it: the axes has it."""
    axes.text(
        0, height, line, va="baseline", fontsize=6, family="monospace", color=colour,
        transform=axes.transAxes, in_layout=False,
    )  # fmt: skip
