"""Findings that an image shows, for the decoder of reports to be told: a prompt of yes and no.

Prompting a generator with a classifier's diagnosis is PromptMRG's idea (Jin et al., AAAI 2024);
here the classifier is a ridge regression on pooled features, in closed form, because training sets
of reports may be small. Its labels are what the labeller of `metrics.findings` reads in the
training reports. Its penalty and its one threshold are chosen on the leave-one-out predictions of
train and on validation, never on test.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mg3d.metrics.findings import micro_f1

_ARRAYS = ("mean", "deviation", "weight", "prior")
PENALTIES = tuple(10.0**power for power in range(7))


@dataclass(frozen=True)
class Diagnosis:
    """``probability`` = features [N, C] standardised, by ``weight`` [C, K], plus ``prior`` [K]."""

    mean: np.ndarray
    deviation: np.ndarray
    weight: np.ndarray
    prior: np.ndarray
    penalty: float
    threshold: float

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], penalty: float, threshold: float
    ) -> "Diagnosis":
        """The inverse of `as_tensors`."""
        mean, deviation, weight, prior = (tensors[f"diagnosis.{name}"].numpy() for name in _ARRAYS)
        return cls(mean, deviation, weight, prior, penalty, threshold)

    def as_tensors(self) -> dict[str, Tensor]:
        """The arrays, under ``diagnosis.``."""
        return {f"diagnosis.{name}": torch.from_numpy(getattr(self, name)) for name in _ARRAYS}

    def probability(self, features: np.ndarray) -> np.ndarray:
        """[N, C] -> [N, K]; least squares, so it may leave [0, 1] a little."""
        return (features - self.mean) / self.deviation @ self.weight + self.prior

    def findings(self, features: np.ndarray) -> np.ndarray:
        """[N, C] -> int [N, K] in {0, 1}."""
        return (self.probability(features) >= self.threshold).astype(int)


def fit_diagnosis(
    features: np.ndarray,
    labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
) -> Diagnosis:
    """Ridge from features [N, C] to labels [N, K]; the penalty with the least squared error of the
    held-out, then the threshold with their largest micro F1.

    Features that are the same for all leave the prevalence of each label: what is diagnosed without
    an image. Raises ValueError for fewer than two training cases.
    """
    if len(features) < 2:
        raise ValueError(f"{len(features)} training cases: a diagnosis is fitted to two or more")
    mean, prior = features.mean(0), labels.mean(0)
    deviation = np.maximum(features.std(0), 1e-6)
    x, y = (features - mean) / deviation, labels - prior
    left, singular, right = np.linalg.svd(x, full_matrices=False)
    held_out_labels = np.concatenate([labels, validation_labels])
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for penalty in PENALTIES:
        shrunk = singular**2 / (singular**2 + penalty)
        # Leave-one-out in closed form; 1/N is the leverage of the mean that was taken away.
        leverage = np.minimum((left**2 * shrunk).sum(1) + 1 / len(x), 1 - 1e-6)
        residual = (y - (left * shrunk) @ (left.T @ y)) / (1 - leverage)[:, None]
        weight = right.T @ ((singular / (singular**2 + penalty))[:, None] * (left.T @ y))
        of_validation = (validation_features - mean) / deviation @ weight + prior
        held_out = np.concatenate([labels - residual, of_validation])
        error = float(((held_out - held_out_labels) ** 2).mean())
        if best is None or error < best[0]:
            best = error, penalty, weight, held_out
    assert best is not None
    _, penalty, weight, held_out = best
    threshold = _best_threshold(held_out, held_out_labels)
    return Diagnosis(mean, deviation, weight, prior, penalty, threshold)


def _best_threshold(probability: np.ndarray, labels: np.ndarray) -> float:
    """Of the occurring probabilities the one with the largest micro F1, the highest of equals."""
    candidates = np.unique(np.quantile(probability, np.linspace(0, 1, 101)))[::-1]
    scores = [micro_f1((probability >= cut).astype(int), labels) for cut in candidates]
    return float(candidates[int(np.nanargmax(scores))]) if not np.isnan(scores).all() else 1.0
