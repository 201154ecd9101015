"""Corpus scores of generated reports: raw text against raw text, one fixed normaliser.

Normaliser 1: lower case; letters and digits are kept; a full stop is a token of its own; anything
else separates tokens. Tokenisation moves BLEU by points, so its version is part of the result.
"""

import re
from collections.abc import Sequence

import numpy as np

NORMALISER = "1"
_TOKEN = re.compile(r"[a-z0-9]+|\.")


def normalise(text: str) -> str:
    """Tokens of ``text`` under normaliser 1, joined by single spaces."""
    return " ".join(_TOKEN.findall(text.lower()))


def bleu_statistics(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Sufficient statistics of corpus BLEU, one row per case: int [N, 10].

    Columns: hypothesis length, reference length, four n-gram totals, four clipped n-gram matches
    (n = 1..4), as pycocoevalcap counts them. Rows add up, which makes a bootstrap cheap.
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        scorer += (normalise(hypothesis), [normalise(reference)])
    return np.array(
        [
            [case["testlen"], case["reflen"][0], *case["guess"], *case["correct"]]
            for case in scorer.ctest or []
        ],
        dtype=np.int64,
    ).reshape(-1, 10)


def bleu(statistics: np.ndarray) -> np.ndarray:
    """Corpus BLEU-1..4 in [0, 1] of rows of `bleu_statistics`: [N, 10] -> [4].

    Papineni et al. 2002: geometric mean of clipped precisions times the brevity penalty
    exp(1 - r/c) for c < r. Without any n-gram match the score is 0; no smoothing.
    """
    total = statistics.sum(axis=0).astype(float)
    length, reference_length = total[0], total[1]
    precision = total[6:10] / np.maximum(total[2:6], 1)
    if length == 0:
        return np.zeros(4)
    with np.errstate(divide="ignore"):
        log_mean = np.cumsum(np.log(precision)) / np.arange(1, 5)
    penalty = min(0.0, 1 - reference_length / length)
    return np.exp(log_mean + penalty)


def sacrebleu_statistics(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """As `bleu_statistics`, of the raw texts as sacrebleu cuts them (13a, case kept)."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    scores = (
        metric.corpus_score([hypothesis], [[reference]])
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    )
    return np.array(
        [[score.sys_len, score.ref_len, *score.totals, *score.counts] for score in scores],
        dtype=np.int64,
    ).reshape(-1, 10)


def sacrebleu(statistics: np.ndarray) -> float:
    """Corpus sacreBLEU in [0, 1] of rows of `sacrebleu_statistics` (smoothed "exp", its default).

    Another tokeniser than normaliser 1, so another number than `bleu`: never mix the two.
    """
    from sacrebleu.metrics import BLEU

    length, reference_length, *counts = statistics.sum(axis=0).tolist()
    total, correct = counts[:4], counts[4:]
    return BLEU.compute_bleu(correct, total, length, reference_length, "exp").score / 100


def rouge_l_f1(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F1 of each case [N] (rouge-score: plain F1, no stemming)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return np.array(
        [
            scorer.score(normalise(reference), normalise(hypothesis))["rougeL"].fmeasure
            for hypothesis, reference in zip(hypotheses, references, strict=True)
        ]
    )


def rouge_l_beta(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L of each case [N] as captioning papers print it (pycocoevalcap: recall weighs 1.2)."""
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    return np.array(
        [
            scorer.calc_score([normalise(hypothesis)], [normalise(reference)])
            for hypothesis, reference in zip(hypotheses, references, strict=True)
        ]
    )


def cider_d(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """CIDEr-D of each case [N] (pycocoevalcap: clipped, length-penalised, sigma 6; times 10).

    Document frequencies come from these references, so the value depends on the test set and means
    little on a small one.
    """
    from pycocoevalcap.cider.cider import Cider

    if not hypotheses:
        return np.zeros(0)
    keys = range(len(hypotheses))
    _, scores = Cider().compute_score(
        {key: [normalise(references[key])] for key in keys},
        {key: [normalise(hypotheses[key])] for key in keys},
    )
    return np.asarray(scores, dtype=float)
