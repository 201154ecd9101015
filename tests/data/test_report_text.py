"""Characters of a report: escapes, hard wrapping."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.data.report_text import normalise, num_visible, unwrap


@pytest.mark.parametrize(
    ("wrapped", "expected"),
    [
        (
            "The lungs are clear and the\nheart is normal.",
            "The lungs are clear and the heart is normal.",
        ),
        ("A 3-\nD view.", "A 3-D view."),
        ("Lungs clear\nHeart normal", "Lungs clear\nHeart normal"),
        ("1. Nodule of the\nright lobe.\n2. Cyst.", "1. Nodule of the right lobe.\n2. Cyst."),
        ("- Nodule\n- Cyst", "- Nodule\n- Cyst"),
        ("LUNGS:\nClear.\n\nHEART:\nLarge.", "LUNGS: Clear.\nHEART: Large."),
        ("  A   wide    gap. \n\n\n B. ", "A wide gap.\nB."),
        ("", ""),
    ],
)
def test_unwrap(wrapped: str, expected: str) -> None:
    assert unwrap(wrapped) == expected


def test_unwrap_joins_full_lines_before_capitals() -> None:
    text = (
        "There is a spiculated nodule in the anterior segment of\nLeft upper lobe.\nHeart normal."
    )
    assert unwrap(text).split("\n") == [
        "There is a spiculated nodule in the anterior segment of Left upper lobe.",
        "Heart normal.",
    ]


def test_normalise_undoes_escapes() -> None:
    text = "A &lt; B<br/>C\\.br\\D_x000D_\nE\u00a0F\u2019s\r\nG\x00"
    assert normalise(text) == "A < B\nC\nD\nE F's\nG"


LINES = st.lists(
    st.sampled_from(
        ["A ", "nodule", " of", "3-", "D", ":", ".", "\n", "\n\n", "1. ", "- ", "x" * 30]
    ),
    max_size=25,
).map("".join)


@settings(max_examples=100, deadline=None)
@given(LINES)
def test_unwrapping_changes_white_space_only(text: str) -> None:
    unwrapped = unwrap(text)
    assert "".join(unwrapped.split()) == "".join(text.split())
    assert num_visible(unwrapped) == num_visible(text)
    assert all(line == " ".join(line.split()) for line in unwrapped.split("\n"))
