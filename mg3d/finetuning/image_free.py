"""Reports that nobody needed an image to write: chosen on training text, the same for every case.

Reports are templated, so these score well: on CTRG-Chest a constant text reaches the BLEU-4 of
published systems (spec/downstream 4). No text score stands without them beside it.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mg3d.metrics.text import bleu, bleu_statistics

MAX_CANDIDATES, MAX_REFERENCES = 300, 150  # as measured in spec/downstream 4


def most_frequent(texts: Sequence[str]) -> tuple[str, int]:
    """The text that occurs most often, of equal ones the alphabetically first; and how often."""
    return min(Counter(texts).items(), key=lambda item: (-item[1], item[0]))


def best_by_bleu(texts: Sequence[str], seed: int) -> tuple[str, float]:
    """The text with the highest corpus BLEU-4 as the one hypothesis for the others; and that score.

    Up to `MAX_CANDIDATES` random texts stand for election, up to `MAX_REFERENCES` are what they are
    held against; none against itself. Raises ValueError for fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} training reports: a constant is chosen among two or more")
    generator = np.random.default_rng(seed)
    candidates = generator.permutation(len(texts))[:MAX_CANDIDATES]
    references = generator.permutation(len(texts))[:MAX_REFERENCES]
    scores = {}
    for candidate in sorted(candidates):
        others = [texts[index] for index in references if index != candidate]
        statistics = bleu_statistics([texts[candidate]] * len(others), others)
        scores[int(candidate)] = tuple(bleu(statistics)[::-1])  # equal BLEU-4: BLEU-3 decides
    best = max(scores, key=lambda candidate: scores[candidate])
    return texts[best], float(scores[best][0])
