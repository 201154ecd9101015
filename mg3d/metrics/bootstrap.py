"""An estimate with its interval: patients are resampled, never slices or reconstructions.

An estimate keeps the sample it was made from, so that estimates on the same cases can be compared
and averaged afterwards, whatever the metric is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np


@dataclass(frozen=True)
class Sample:
    """What an estimate is made of: a function of case indices (int [N], with repeats; NaN where
    undefined) and the patient of each case."""

    statistic: Callable[[np.ndarray], float]
    patient_ids: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """A metric's value. It is None when it cannot be had, and ``reason`` says why: never 0."""

    value: float | None
    interval: tuple[float, float] | None = None
    reason: str | None = None
    sample: Sample | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Difference:
    """Of two metrics on the same cases: second minus first, or None and the ``reason``.

    ``p_value`` is two-sided: twice the smaller share of resamples on either side of 0.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    reason: str | None = None


def unavailable(reason: str) -> Estimate:
    """The metric that could not be computed."""
    return Estimate(None, None, reason)


def estimate(
    statistic: Callable[[np.ndarray], float],
    patient_ids: Sequence[str],
    *,
    num_resamples: int,
    seed: int,
    level: float = 0.95,
    undefined: str = "undefined on these cases",
) -> Estimate:
    """Value of ``statistic`` over all cases and its percentile bootstrap interval by patient.

    ``statistic`` maps case indices (int [N], with repeats) to a float, NaN where undefined. Each
    resample draws as many patients as there are, with replacement, and takes all their cases
    (cluster bootstrap, Davison and Hinkley 1997, 3.8). Undefined resamples are left out; if they
    are more than half, there is no interval and ``reason`` says so. An undefined value gives
    ``Estimate(None, None, undefined)``.
    """
    (found,) = estimates(
        lambda rows: np.array([statistic(rows)]),
        patient_ids,
        num_statistics=1,
        num_resamples=num_resamples,
        seed=seed,
        level=level,
        undefined=undefined,
    )
    return found


def estimates(
    statistics: Callable[[np.ndarray], np.ndarray],
    patient_ids: Sequence[str],
    *,
    num_statistics: int,
    num_resamples: int,
    seed: int,
    level: float = 0.95,
    undefined: str = "undefined on these cases",
) -> list[Estimate]:
    """:func:`estimate` for several statistics of the same resamples, in their order.

    ``statistics`` maps case indices (int [N], with repeats) to float [num_statistics].
    """
    if len(patient_ids) == 0:
        return [unavailable("no cases")] * num_statistics
    values = statistics(np.arange(len(patient_ids)))
    assert values.shape == (num_statistics,), values.shape
    patients = tuple(map(str, patient_ids))
    resampled = _resampled(statistics, patients, num_statistics, num_resamples, seed)
    found = []
    for place, value in enumerate(values.tolist()):
        if not np.isfinite(value):
            found.append(unavailable(undefined))
            continue
        sample = Sample(partial(_at, statistics, place), patients)
        defined = _finite(resampled[:, place])
        if len(defined) * 2 < num_resamples:
            reason = f"undefined in {num_resamples - len(defined)} resamples"
            found.append(Estimate(value, None, reason, sample))
        else:
            found.append(Estimate(value, _interval(defined, level), None, sample))
    return found


def paired_difference(
    first: Estimate, second: Estimate, *, num_resamples: int, seed: int, level: float = 0.95
) -> Difference:
    """``second`` minus ``first``, both on the same resampled patients (paired bootstrap).

    Efron and Tibshirani 1993, 15.4 and 16: the interval is the percentile one, and the p value
    inverts it, with one resample more on each side so that it is never 0. There is no difference,
    and a reason, where a value is missing or the cases are not the same.
    """
    for estimated in (first, second):
        if estimated.value is None or estimated.sample is None:
            return Difference(None, reason=estimated.reason or "a value without its cases")
    assert first.sample is not None
    assert second.sample is not None
    if first.sample.patient_ids != second.sample.patient_ids:
        return Difference(None, reason="not the same cases")
    one, other = first.sample.statistic, second.sample.statistic
    both = Sample(lambda rows: other(rows) - one(rows), first.sample.patient_ids)
    value = float(both.statistic(np.arange(len(both.patient_ids))))
    resampled = _resampled(
        lambda rows: np.array([both.statistic(rows)]), both.patient_ids, 1, num_resamples, seed
    )
    defined = _finite(resampled[:, 0])
    if len(defined) * 2 < num_resamples:
        missing = num_resamples - len(defined)
        return Difference(value, reason=f"undefined in {missing} resamples")
    below, above = int((defined <= 0).sum()), int((defined >= 0).sum())
    p_value = min(1.0, 2 * (min(below, above) + 1) / (len(defined) + 1))
    return Difference(value, _interval(defined, level), p_value)


def mean_of(estimates: Sequence[Estimate], *, num_resamples: int, seed: int) -> Estimate:
    """Mean of one metric over several models (seeds) on the same cases, resampled together.

    Unavailable where one is, or where the cases differ.
    """
    samples = []
    for estimated in estimates:
        if estimated.value is None or estimated.sample is None:
            return unavailable(estimated.reason or "a value without its cases")
        samples.append(estimated.sample)
    if len({sample.patient_ids for sample in samples}) > 1:
        return unavailable("not the same cases")
    return estimate(
        lambda rows: float(np.mean([sample.statistic(rows) for sample in samples])),
        samples[0].patient_ids,
        num_resamples=num_resamples,
        seed=seed,
    )


def _resampled(
    statistics: Callable[[np.ndarray], np.ndarray],
    patient_ids: Sequence[str],
    num_statistics: int,
    num_resamples: int,
    seed: int,
) -> np.ndarray:
    """The statistics [num_resamples, num_statistics] on resampled patients."""
    assert num_resamples > 0
    _, patient = np.unique(np.asarray(patient_ids), return_inverse=True)
    cases_of = [np.flatnonzero(patient == index) for index in range(patient.max() + 1)]
    generator = np.random.default_rng(seed)
    resampled = np.empty((num_resamples, num_statistics))
    for row in range(num_resamples):
        drawn = generator.integers(len(cases_of), size=len(cases_of))
        resampled[row] = statistics(np.concatenate([cases_of[index] for index in drawn]))
    return resampled


def _at(statistics: Callable[[np.ndarray], np.ndarray], place: int, rows: np.ndarray) -> float:
    return float(statistics(rows)[place])


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _interval(resampled: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def mean_estimate(
    values: np.ndarray,
    patient_ids: Sequence[str],
    *,
    num_resamples: int,
    seed: int,
    undefined: str = "no case where it is defined",
) -> Estimate:
    """Mean over cases of ``values`` [N], NaN entries left out, with its interval by patient."""

    def mean(indices: np.ndarray) -> float:
        chosen = values[indices]
        defined = chosen[np.isfinite(chosen)]
        return float(defined.mean()) if len(defined) else float("nan")

    return estimate(mean, patient_ids, num_resamples=num_resamples, seed=seed, undefined=undefined)
