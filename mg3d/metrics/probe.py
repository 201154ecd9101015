"""A linear probe of alignment: how much of its report can be read off a frozen image, linearly.

A ridge regression from image features to report features is fitted on training studies; then each
validation image's prediction is compared with all reports by cosine, and back. It asks the same of
every encoder, whatever it was trained with, an untrained one included.
"""

from collections.abc import Sequence

import numpy as np

from mg3d.metrics import retrieval
from mg3d.metrics.bootstrap import Estimate, estimate, mean_estimate

WAYS = ("image_to_text", "text_to_image")
STRENGTHS = 10.0 ** np.arange(-2, 7)


def predict_reports(
    images: np.ndarray, reports: np.ndarray, new_images: np.ndarray
) -> tuple[np.ndarray, float]:
    """Report features that the ridge regression gives ``new_images`` [V, C]: [V, E]; its strength.

    ``images`` [N, C] and ``reports`` [N, E] are the training studies'; each image feature is
    brought to mean 0 and variance 1 over them. The strength is that of the least leave-one-out
    error (in closed form) among them.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ridge = RidgeCV(alphas=STRENGTHS)
    model = make_pipeline(StandardScaler(), ridge).fit(images.astype(float), reports.astype(float))
    return model.predict(new_images.astype(float)), float(ridge.alpha_)


def probe_ranks(
    images: np.ndarray, reports: np.ndarray, new_images: np.ndarray, new_reports: np.ndarray
) -> dict[str, np.ndarray]:
    """1-based rank of the right one of V, by way (`WAYS`), each int [V].

    Features as in `predict_reports`; row i of ``new_images`` belongs to row i of ``new_reports``.
    The cosine is that of deviations from the mean training report.
    """
    predicted, _ = predict_reports(images, reports, new_images)
    mean = reports.mean(axis=0)
    similarity = _normalised(predicted - mean) @ _normalised(new_reports - mean).T
    matches = np.eye(len(new_reports), dtype=bool)
    return {
        way: retrieval.ranks(ordered, matches)
        for way, ordered in zip(WAYS, (similarity, similarity.T), strict=True)
    }


def hits_at(ranks: dict[str, np.ndarray], k: int) -> np.ndarray:
    """Share of the two ways in which each study is among the first k: 0, ½ or 1, [V]."""
    return np.mean([ranks[way] <= k for way in WAYS], axis=0)


def recall_estimate(
    hits: np.ndarray, patient_ids: Sequence[str], num_resamples: int, seed: int = 0
) -> Estimate:
    """Mean of ``hits`` (or of differences of hits) and its bootstrap interval by patient.

    The interval is about which patients were met; neither the probe nor the encoder is fitted anew.
    """
    return mean_estimate(hits, patient_ids, num_resamples=num_resamples, seed=seed)


def median_rank_estimate(
    ranks: dict[str, np.ndarray], patient_ids: Sequence[str], num_resamples: int, seed: int = 0
) -> Estimate:
    """Median rank over both ways and its interval by patient; chance is (V + 1) / 2."""
    both = np.stack([ranks[way] for way in WAYS])
    return estimate(
        lambda indices: float(np.median(both[:, indices])),
        patient_ids,
        num_resamples=num_resamples,
        seed=seed,
    )


def _normalised(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
