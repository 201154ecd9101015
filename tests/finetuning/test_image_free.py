import pytest

from mg3d.finetuning.image_free import best_by_bleu, most_frequent
from mg3d.metrics.text import bleu, bleu_statistics


def test_most_frequent_by_hand() -> None:
    assert most_frequent(["b", "a", "b", "a", "c"]) == ("a", 2)


TEXTS = [
    "The lungs are clear. No pleural effusion. The heart is normal.",
    "The lungs are clear. No pleural effusion.",
    "The heart is normal. The lungs are clear. No pleural effusion is seen.",
    "A fracture of the left rib.",
]


def test_the_constant_is_the_one_that_serves_the_others_best() -> None:
    text, score = best_by_bleu(TEXTS, seed=0)
    by_hand = {}
    for candidate in TEXTS:
        others = [other for other in TEXTS if other is not candidate]
        by_hand[candidate] = bleu(bleu_statistics([candidate] * 3, others))[3]
    assert text == max(by_hand, key=lambda one: by_hand[one])
    assert score == pytest.approx(by_hand[text])
    assert text != TEXTS[3]


def test_a_text_is_not_held_against_itself_but_against_its_copies() -> None:
    long = "Several findings that no other report of this collection has in common."
    assert best_by_bleu([*TEXTS, long], seed=1)[0] != long
    assert best_by_bleu(["a b c d e"] * 2, seed=0) == ("a b c d e", 1.0)


def test_one_report_is_no_choice() -> None:
    with pytest.raises(ValueError, match="1 training reports"):
        best_by_bleu(["a"], seed=0)
