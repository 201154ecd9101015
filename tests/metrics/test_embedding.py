"""By hand, at the ends of each scale, and against another implementation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.metrics.embedding import (
    alignment,
    collapsed,
    effective_rank,
    mean_cosine,
    modality_gap,
    top_variance_fraction,
    uniformity,
)

CROSS = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # the plane, evenly


def test_rank_and_variance_by_hand() -> None:
    """Singular values 3√2 and √2 around the mean: shares 3/4, 1/4; variances 9 to 1."""
    x = CROSS * [3, 1] + [10, 20]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(x) == pytest.approx(math.exp(entropy))
    assert top_variance_fraction(x, 1) == pytest.approx(0.9)
    assert top_variance_fraction(x, 2) == pytest.approx(1)
    assert effective_rank(CROSS) == pytest.approx(2)


def test_one_line_and_one_point() -> None:
    line = np.outer([1.0, 2, 5, 7], [0.3, -0.4, 0.1])
    assert effective_rank(line) == pytest.approx(1)
    point = np.full((4, 3), 0.1, np.float32)
    assert effective_rank(point) == 0
    assert math.isnan(top_variance_fraction(point, 1))
    assert mean_cosine(point) == pytest.approx(1)
    assert uniformity(point) == pytest.approx(0)


def test_pairs_by_hand() -> None:
    """Angles 0, 90 and 180 degrees: cosines 0, -1, 0; squared distances 2, 4, 2."""
    x = np.array([[2.0, 0], [0, 0.5], [-3, 0]])
    assert mean_cosine(x) == pytest.approx(-1 / 3)
    expected = (2 * math.exp(-4) + math.exp(-8)) / 3
    assert uniformity(x) == pytest.approx(math.log(expected))
    assert alignment(x, x * 5) == pytest.approx(0)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, np.roll(x, 1, axis=0)) == pytest.approx((4 + 2 + 2) / 3)
    # the mean of x is (0, 1/3)
    assert modality_gap(x, np.array([[1.0, 0]] * 3)) == pytest.approx(math.hypot(1, 1 / 3))
    assert modality_gap(x, x[::-1]) == pytest.approx(0)


def test_against_the_papers_code() -> None:
    """Wang & Isola's align_loss and uniform_loss as printed in their paper, in torch."""
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(30, 8))) for _ in range(2))
    a, b = F.normalize(x), F.normalize(y)
    assert alignment(x.numpy(), y.numpy()) == pytest.approx(float((a - b).norm(2, 1).pow(2).mean()))
    theirs = torch.pdist(a).pow(2).mul(-2).exp().mean().log()
    assert uniformity(x.numpy()) == pytest.approx(float(theirs))
    entropy = torch.distributions.Categorical(torch.linalg.svdvals(x - x.mean(0))).entropy()
    assert effective_rank(x.numpy()) == pytest.approx(float(entropy.exp()))


def test_spread_evenly_in_many_dimensions_is_minus_four() -> None:
    assert uniformity(np.eye(400)) == pytest.approx(-4)


def test_what_counts_as_collapsed() -> None:
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(10, 16))
    assert not collapsed(spread)
    assert not collapsed(CROSS)  # exactly a plane
    one_way = np.ones(16) * 100 + spread
    assert collapsed(one_way)  # many dimensions, but next to nothing beside their mean
    assert mean_cosine(one_way) > 0.99
    assert effective_rank(one_way) > 5
    line = np.outer(rng.normal(size=10), np.ones(16)) + 0.001 * spread
    assert collapsed(line)  # far apart, but on a line
    assert mean_cosine(line) < 0.99
    assert not collapsed(line[:3])


@settings(max_examples=30, deadline=None)
@given(num=st.integers(1, 12), width=st.integers(1, 9), seed=st.integers(0, 999))
def test_ranges_and_invariance(num: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, num, width))
    turn, _ = np.linalg.qr(rng.normal(size=(width, width)))
    if num == 1:
        assert math.isnan(mean_cosine(x))
        assert math.isnan(uniformity(x))
    else:
        assert 1 - 1e-9 <= effective_rank(x) <= min(num - 1, width) + 1e-9
        assert -8 <= uniformity(x) <= 0
        assert effective_rank(x @ turn * 3 + 1) == pytest.approx(effective_rank(x), rel=1e-6)
        assert uniformity(x @ turn) == pytest.approx(uniformity(x))
    assert 0 <= alignment(x, y) <= 4
    assert 0 <= modality_gap(x, y) <= 2
    assert alignment(x @ turn, y @ turn) == pytest.approx(alignment(x, y))
