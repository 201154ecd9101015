import numpy as np
import pytest
from scipy.stats import bootstrap

from mg3d.metrics.bootstrap import (
    estimate,
    mean_estimate,
    mean_of,
    paired_difference,
    unavailable,
)


def test_interval_agrees_with_scipy_when_each_patient_has_one_case() -> None:
    values = np.random.default_rng(1).normal(size=60)
    ours = mean_estimate(values, [str(i) for i in range(60)], num_resamples=4000, seed=0)
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=2)
    assert ours.value == pytest.approx(values.mean())
    assert ours.interval == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)


def test_copies_of_a_patient_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(1).normal(size=20)
    patients = [str(i) for i in range(20)]
    once = mean_estimate(values, patients, num_resamples=2000, seed=0)
    copied = mean_estimate(np.tile(values, 10), patients * 10, num_resamples=2000, seed=0)
    assert once.interval is not None
    assert copied.interval == pytest.approx(once.interval)


def test_patients_are_drawn_whole() -> None:
    seen: set[tuple[int, ...]] = set()

    def statistic(rows: np.ndarray) -> float:
        seen.add(tuple(rows))
        return 0.0

    estimate(statistic, ["a", "a", "b"], num_resamples=50, seed=0)
    assert seen == {(0, 1, 2), (0, 1, 0, 1), (2, 2), (2, 0, 1)}


def test_undefined_is_none_with_a_reason_never_zero() -> None:
    nan = np.full(3, np.nan)
    result = mean_estimate(nan, ["a", "b", "c"], num_resamples=10, seed=0, undefined="no lesion")
    assert (result.value, result.interval, result.reason) == (None, None, "no lesion")
    assert mean_estimate(np.zeros(0), [], num_resamples=10, seed=0).value is None


def test_mostly_undefined_resamples_give_no_interval() -> None:
    def only_whole(rows: np.ndarray) -> float:
        return 1.0 if len(set(rows)) == 8 else float("nan")

    result = estimate(only_whole, list("abcdefgh"), num_resamples=200, seed=0)
    assert result.value == 1.0
    assert result.interval is None
    assert "undefined in" in str(result.reason)


def test_same_seed_same_interval() -> None:
    values = np.arange(10.0)
    first, second = (
        mean_estimate(values, list("abcdefghij"), num_resamples=100, seed=3) for _ in range(2)
    )
    assert first == second


def test_paired_difference_agrees_with_scipy_and_is_narrower_than_unpaired() -> None:
    draws = np.random.default_rng(3)
    shared = draws.normal(size=50)
    a, b = (
        shared + draws.normal(scale=0.1, size=50),
        shared + 0.2 + draws.normal(scale=0.1, size=50),
    )
    patients = [str(i) for i in range(50)]
    one, other = (mean_estimate(x, patients, num_resamples=100, seed=0) for x in (a, b))
    ours = paired_difference(one, other, num_resamples=4000, seed=1)
    theirs = bootstrap(
        (a, b),
        lambda x, y, axis: y.mean(axis) - x.mean(axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=2,
    ).confidence_interval
    assert ours.value == pytest.approx((b - a).mean())
    assert ours.interval == pytest.approx(tuple(theirs), abs=0.01)
    assert ours.p_value == pytest.approx(2 / 4001)  # no resample on the other side
    assert one.interval is not None
    assert one.interval[1] - one.interval[0] > 3 * (theirs.high - theirs.low)


def test_paired_p_value_by_hand() -> None:
    """Two patients, differences -1 and +1: means -1, 0, 1 with shares 1/4, 1/2, 1/4."""
    one = mean_estimate(np.array([1.0, 0.0]), ["a", "b"], num_resamples=100, seed=0)
    other = mean_estimate(np.array([0.0, 1.0]), ["a", "b"], num_resamples=100, seed=0)
    found = paired_difference(one, other, num_resamples=1000, seed=0)
    assert (found.value, found.interval, found.p_value) == (0.0, (-1.0, 1.0), 1.0)
    same = paired_difference(one, one, num_resamples=100, seed=0)
    assert (same.value, same.interval, same.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_p_values_are_uniform_without_a_difference() -> None:
    """The share of p below 0.1 over many draws without difference is about 0.1."""
    draws, small = np.random.default_rng(0), 0
    for seed in range(200):
        patients = [str(i) for i in range(40)]
        one, other = (
            mean_estimate(draws.normal(size=40), patients, num_resamples=1, seed=0)
            for _ in range(2)
        )
        p = paired_difference(one, other, num_resamples=200, seed=seed).p_value
        assert p is not None
        small += p < 0.1
    assert 8 <= small <= 36  # 20 expected, deviation 4.2


def test_other_cases_are_not_compared() -> None:
    one = mean_estimate(np.ones(3), list("abc"), num_resamples=10, seed=0)
    other = mean_estimate(np.ones(3), list("abd"), num_resamples=10, seed=0)
    assert paired_difference(one, other, num_resamples=10, seed=0).reason == "not the same cases"
    assert mean_of([one, other], num_resamples=10, seed=0).reason == "not the same cases"
    none = paired_difference(one, unavailable("one class"), num_resamples=10, seed=0)
    assert (none.value, none.reason) == (None, "one class")


def test_mean_over_seeds_has_the_interval_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(size=(3, 30))
    patients = [str(i) for i in range(30)]
    seeds = [mean_estimate(row, patients, num_resamples=10, seed=0) for row in values]
    of_mean = mean_estimate(values.mean(0), patients, num_resamples=500, seed=4)
    together = mean_of(seeds, num_resamples=500, seed=4)
    assert together.value == pytest.approx(of_mean.value)
    assert together.interval == pytest.approx(of_mean.interval)
