"""The shape of a set of embeddings, and how two modalities lie to each other.

Retrieval says whether the right pairs are near; these say why not. Embeddings [N, E] of N different
studies, of any length: all but the rank and the variance first divide each by its norm.
"""

import numpy as np

#: A set of embeddings has collapsed above the one or below the other; see :func:`collapsed`.
MAX_MEAN_COSINE = 0.99
MIN_EFFECTIVE_RANK = 2.0
MIN_SAMPLES = 4


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the singular values' shares (Roy & Vetterli 2007), mean removed.

    Between 1 (all on one line) and min(N - 1, E) (no direction preferred); 0 if all are one point.
    """
    share = _singular_values(x)
    if not share.any():
        return 0.0
    share = share[share > 0] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def top_variance_fraction(x: np.ndarray, num_dimensions: int) -> float:
    """Share of the variance in the principal dimensions that hold most; NaN without variance."""
    variance = _singular_values(x) ** 2
    return float(variance[:num_dimensions].sum() / variance.sum()) if variance.any() else np.nan


def mean_cosine(x: np.ndarray) -> float:
    """Mean cosine of two different samples: 1 if all point one way; NaN under two samples."""
    x, num = _normalised(x), len(x)
    return (
        float(((x.sum(axis=0) ** 2).sum() - (x**2).sum()) / (num * (num - 1)))
        if num > 1
        else np.nan
    )


def alignment(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared distance of matching rows (Wang & Isola 2020, α = 2): 0 best, 4 opposite."""
    return float(((_normalised(x) - _normalised(y)) ** 2).sum(axis=1).mean())


def uniformity(x: np.ndarray) -> float:
    """log of the mean of exp(-2 d²) over pairs (Wang & Isola 2020, t = 2): 0 one point, -4 spread.

    -4 is that of many samples spread evenly over a sphere of many dimensions. NaN under two.
    """
    x = _normalised(x)
    first, second = np.triu_indices(len(x), k=1)
    squared = 2 - 2 * (x @ x.T)[first, second]
    return float(np.log(np.exp(-2 * squared).mean())) if len(first) else np.nan


def modality_gap(x: np.ndarray, y: np.ndarray) -> float:
    """Distance of the two means (Liang et al. 2022): 0 mixed, 2 two opposite points."""
    return float(np.linalg.norm(_normalised(x).mean(axis=0) - _normalised(y).mean(axis=0)))


def collapsed(x: np.ndarray) -> bool:
    """Whether the embeddings hardly tell studies apart.

    The rule: a mean cosine of two studies above 0.99, or an effective rank below 2, that is, not
    even a plane is filled. Fewer than 4 samples cannot fill one evenly and are not judged.
    """
    if len(x) < MIN_SAMPLES:
        return False
    return mean_cosine(x) > MAX_MEAN_COSINE or effective_rank(x) < MIN_EFFECTIVE_RANK


def _normalised(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _singular_values(x: np.ndarray) -> np.ndarray:
    """Of the samples around their mean; what is rounding is 0."""
    x = x.astype(np.float64)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    values[values <= 1e-6 * np.abs(x).max(initial=0) * len(x) ** 0.5] = 0
    return values
