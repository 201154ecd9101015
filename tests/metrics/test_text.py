import contextlib
import io

import numpy as np
import pytest

from mg3d.metrics.text import bleu, bleu_statistics, cider, normalise, rouge_l

HYPOTHESES = [
    "There is a small pleural effusion on the left. No nodule.",
    "The heart is normal. No pleural effusion.",
    "Consolidation in the right lower lobe.",
]
REFERENCES = [
    "A small left pleural effusion is seen. No nodule in the lungs.",
    "The heart is normal. There is no pleural effusion.",
    "Ground-glass opacity in the right lower lobe with consolidation.",
]


def test_normaliser_by_hand() -> None:
    assert normalise("Ground-Glass,\n 1.5 cm (LEFT).") == "ground glass 1 . 5 cm left ."


def test_bleu_by_hand() -> None:
    # "a b c d": 3 of 4 unigrams, 2 of 3 bigrams; one token shorter than the reference.
    scores = bleu(bleu_statistics(["a b c x"], ["a b c d e"]))
    penalty = np.exp(1 - 5 / 4)
    assert scores[0] == pytest.approx(penalty * 3 / 4)
    assert scores[1] == pytest.approx(penalty * (3 / 4 * 2 / 3) ** 0.5)
    assert scores[2] == pytest.approx(penalty * (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert scores[3] == 0


def test_bleu_agrees_with_pycocoevalcap_and_sacrebleu() -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from sacrebleu.metrics import BLEU

    hypotheses, references = ([normalise(t) for t in texts] for texts in (HYPOTHESES, REFERENCES))
    ours = bleu(bleu_statistics(HYPOTHESES, REFERENCES))
    with contextlib.redirect_stdout(io.StringIO()):
        coco, _ = Bleu(4).compute_score(
            {i: [text] for i, text in enumerate(references)},
            {i: [text] for i, text in enumerate(hypotheses)},
            verbose=0,
        )
    assert ours == pytest.approx(coco, rel=1e-6)
    for n in range(1, 5):
        sacre = BLEU(tokenize="none", max_ngram_order=n, smooth_method="none", force=True)
        assert ours[n - 1] * 100 == pytest.approx(
            sacre.corpus_score(hypotheses, [references]).score, rel=1e-6
        )


def test_bleu_statistics_add_up() -> None:
    rows = bleu_statistics(HYPOTHESES, REFERENCES)
    assert bleu(rows[[0, 2]]) == pytest.approx(
        bleu(bleu_statistics([HYPOTHESES[0], HYPOTHESES[2]], [REFERENCES[0], REFERENCES[2]]))
    )


def test_bleu_of_nothing_is_zero() -> None:
    assert bleu(bleu_statistics([""], ["a b"])).tolist() == [0, 0, 0, 0]


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "a c d" of 4 and 5 tokens.
    assert rouge_l(["a x c d"], ["a b c d e"]) == pytest.approx([2 * 3 / (4 + 5)])


def test_cider_prefers_the_right_report() -> None:
    right = cider(REFERENCES, REFERENCES)
    wrong = cider(REFERENCES[1:] + REFERENCES[:1], REFERENCES)
    assert right == pytest.approx([10, 10, 10])
    assert (wrong < 2).all()
    assert cider([], []).shape == (0,)
