import contextlib
import io
from collections import Counter

import numpy as np
import pytest

from mg3d.metrics.text import (
    bleu,
    bleu_statistics,
    cider_d,
    normalise,
    rouge_l_beta,
    rouge_l_f1,
    sacrebleu,
    sacrebleu_statistics,
)

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


def test_sacrebleu_adds_up_to_the_corpus_score_of_raw_texts() -> None:
    from sacrebleu import corpus_bleu

    rows = sacrebleu_statistics(HYPOTHESES, REFERENCES)
    for chosen in ([0, 1, 2], [0, 2], [1, 1]):
        theirs = corpus_bleu(
            [HYPOTHESES[i] for i in chosen], [[REFERENCES[i] for i in chosen]]
        ).score
        assert sacrebleu(rows[chosen]) * 100 == pytest.approx(theirs)
    assert sacrebleu(sacrebleu_statistics(["A b."], ["a b."])) < 1  # case is kept


def lcs(a: list[str], b: list[str]) -> int:
    """Longest common subsequence by recursion, for short texts."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return lcs(a[:-1], b[:-1]) + 1
    return max(lcs(a[:-1], b), lcs(a, b[:-1]))


def test_both_rouge_l_by_hand_and_by_recursion() -> None:
    # Longest common subsequence "a c d" of 4 and 5 tokens.
    assert rouge_l_f1(["a x c d"], ["a b c d e"]) == pytest.approx([2 * 3 / (4 + 5)])
    precision, recall = 3 / 4, 3 / 5
    weighed = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l_beta(["a x c d"], ["a b c d e"]) == pytest.approx([weighed])
    for hypothesis, reference in zip(HYPOTHESES, REFERENCES, strict=True):
        ours, theirs = (normalise(t).split() for t in (hypothesis, reference))
        # rouge-score knows no full stop
        words = [[w for w in tokens if w != "."] for tokens in (ours, theirs)]
        f1 = 2 * lcs(*words) / (len(words[0]) + len(words[1]))
        assert rouge_l_f1([hypothesis], [reference]) == pytest.approx([f1])
        p, r = lcs(ours, theirs) / len(ours), lcs(ours, theirs) / len(theirs)
        beta = 0.0 if p * r == 0 else (1 + 1.44) * p * r / (r + 1.44 * p)
        assert rouge_l_beta([hypothesis], [reference]) == pytest.approx([beta])


def by_definition(hypotheses: list[str], references: list[str]) -> list[float]:
    """CIDEr-D of Vedantam et al. 2015, equation by equation."""

    def grams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    texts = [[normalise(t).split() for t in both] for both in (hypotheses, references)]
    scores = []
    for hypothesis, reference in zip(*texts, strict=True):
        total = 0.0
        for n in range(1, 5):
            documents = [set(grams(tokens, n)) for tokens in texts[1]]

            def weights(tokens: list[str], n: int = n, documents: list = documents) -> dict:
                frequency = {g: sum(g in d for d in documents) for g in grams(tokens, n)}
                return {
                    g: count * np.log(len(documents) / max(1, frequency[g]))
                    for g, count in grams(tokens, n).items()
                }

            ours, theirs = weights(hypothesis), weights(reference)
            norm = np.prod([np.sqrt(sum(v**2 for v in w.values())) for w in (ours, theirs)])
            product = sum(min(v, theirs.get(g, 0)) * theirs.get(g, 0) for g, v in ours.items())
            total += product / norm if norm else product
        # pycocoevalcap measures length in bigrams
        length = len(hypothesis) - len(reference)
        scores.append(10 * total / 4 * np.exp(-(length**2) / (2 * 6.0**2)))
    return scores


def test_cider_d_agrees_with_its_definition_and_prefers_the_right_report() -> None:
    right = cider_d(REFERENCES, REFERENCES)
    assert right == pytest.approx([10, 10, 10])
    assert (cider_d(REFERENCES[1:] + REFERENCES[:1], REFERENCES) < 2).all()
    assert cider_d(HYPOTHESES, REFERENCES) == pytest.approx(by_definition(HYPOTHESES, REFERENCES))
    assert cider_d([], []).shape == (0,)
