import numpy as np
import pytest
from scipy.stats import bootstrap

from mg3d.metrics.bootstrap import estimate, mean_estimate


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
