import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.figures.report_generation import (
    LINE,
    NUM_LINES,
    Generated,
    report_sheet,
    shared_characters,
    wrapped,
)


def test_sheet_tells_agreed_missed_and_invented() -> None:
    case = Generated(
        slices=[np.zeros((8, 8))] * 3,
        reference="A nodule and an effusion.",
        hypothesis="A nodule and a fracture.",
        reference_findings=frozenset({"nodule", "effusion"}),
        hypothesis_findings=frozenset({"nodule", "fracture"}),
    )
    figure = report_sheet([case])
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("both: nodule") == 2
    assert "reference only: effusion" in texts
    assert "generated only: fracture" in texts
    assert sum(len(axes.images) for axes in figure.axes) == 3
    written = [text for axes in figure.axes for text in axes.texts]
    colours = {" ".join(text.get_text().split()): text.get_color() for text in written}
    assert colours["A nodule and"] == "green"  # what both say, in this order
    assert colours["an effusion."] == "darkorange"
    assert colours["a fracture."] == "red"


def test_what_two_texts_share_by_hand() -> None:
    text, shared = shared_characters("No nodule,\n no fracture.", "there is NO fracture")
    assert text == "No nodule, no fracture."
    assert "".join(c for c, s in zip(text, shared, strict=True) if s) == "nofracture"


WORDS = st.lists(st.text("abc-é.", min_size=1, max_size=90), max_size=40)


@settings(max_examples=50, deadline=None)
@given(WORDS, WORDS)
def test_the_two_layers_of_a_text_overlay(words: list[str], others: list[str]) -> None:
    text, shared = shared_characters(" ".join(words), " ".join(others))
    marked, rest = wrapped(text, shared)
    assert len(marked) == len(rest) <= NUM_LINES
    lines = []
    for ours, theirs in zip(marked, rest, strict=True):
        assert len(ours) == len(theirs) <= LINE
        assert all(a == " " or b == " " for a, b in zip(ours, theirs, strict=True))
        lines.append("".join(max(a, b) for a, b in zip(ours, theirs, strict=True)))
    if lines[-1] != "...":
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
