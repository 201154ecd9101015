"""The probe finds a linear relation and nothing where there is none."""

import numpy as np
import pytest

from mg3d.metrics.bootstrap import Estimate
from mg3d.metrics.probe import (
    hits_at,
    median_rank_estimate,
    predict_reports,
    probe_ranks,
    recall_estimate,
)


def pairs(seed: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [num, 6] of which the reports [num, 8] are an affine function, far from the origin."""
    mixing = np.random.default_rng(0).normal(size=(6, 8))
    images = np.random.default_rng(seed).normal(size=(num, 6)) * [1, 1e3, 1, 1, 1e-3, 1] + 50
    return images, (images - 50) / [1, 1e3, 1, 1, 1e-3, 1] @ mixing + 100


def test_a_linear_relation_is_found_whatever_the_scale_of_a_feature() -> None:
    images, reports = pairs(1, 80)
    new_images, new_reports = pairs(2, 20)
    found = probe_ranks(images, reports, new_images, new_reports)
    assert found["image_to_text"].tolist() == found["text_to_image"].tolist() == [1] * 20


def test_shuffled_pairs_are_at_chance() -> None:
    recalls = []
    for seed in range(20):
        images, reports = pairs(seed, 80)
        new_images, new_reports = pairs(seed + 100, 20)
        shuffled = reports[np.random.default_rng(seed).permutation(80)]
        recalls.append(hits_at(probe_ranks(images, shuffled, new_images, new_reports), 5).mean())
    assert np.mean(recalls) == pytest.approx(0.25, abs=0.1)


def test_a_feature_that_tells_nothing_gets_rank_last_not_first() -> None:
    images, reports = np.zeros((10, 3)), np.random.default_rng(0).normal(size=(10, 4))
    found = probe_ranks(images, reports, np.zeros((5, 3)), reports[:5])
    assert found["text_to_image"].tolist() == [5] * 5  # all predictions are alike: ties lose


def test_the_strength_is_that_of_the_least_leave_one_out_error() -> None:
    generator = np.random.default_rng(3)
    images, reports = generator.normal(size=(30, 4)), generator.normal(size=(30, 2))
    standard = (images - images.mean(0)) / images.std(0)
    _, chosen = predict_reports(images, reports, images)

    def left_out_error(strength: float) -> float:
        total = 0.0
        for out in range(30):
            kept = np.arange(30) != out
            x, y = standard[kept], reports[kept]
            centred = x - x.mean(0)
            weights = np.linalg.solve(
                centred.T @ centred + strength * np.eye(4), centred.T @ (y - y.mean(0))
            )
            predicted = (standard[out] - x.mean(0)) @ weights + y.mean(0)
            total += ((predicted - reports[out]) ** 2).sum()
        return total

    strengths = 10.0 ** np.arange(-2, 7)
    assert chosen == min(strengths, key=left_out_error)


def test_hits_and_estimates_by_hand() -> None:
    ranks = {"image_to_text": np.array([1, 6, 9]), "text_to_image": np.array([5, 2, 7])}
    hits = hits_at(ranks, 5)
    assert hits.tolist() == [1, 0.5, 0]
    assert recall_estimate(hits, ["a", "b", "c"], 100).value == 0.5
    assert recall_estimate(np.ones(3), ["a", "a", "b"], 100) == Estimate(1.0, (1.0, 1.0))
    assert median_rank_estimate(ranks, ["a", "b", "c"], 100).value == 5.5
