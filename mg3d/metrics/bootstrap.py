"""An estimate with its interval: patients are resampled, never slices or reconstructions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A metric's value. It is None when it cannot be had, and ``reason`` says why: never 0."""

    value: float | None
    interval: tuple[float, float] | None = None
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
    assert num_resamples > 0
    if len(patient_ids) == 0:
        return [unavailable("no cases")] * num_statistics
    values = statistics(np.arange(len(patient_ids)))
    assert values.shape == (num_statistics,), values.shape
    _, patient = np.unique(np.asarray(patient_ids), return_inverse=True)
    cases_of = [np.flatnonzero(patient == index) for index in range(patient.max() + 1)]
    generator = np.random.default_rng(seed)
    resampled = np.empty((num_resamples, num_statistics))
    for row in range(num_resamples):
        drawn = generator.integers(len(cases_of), size=len(cases_of))
        resampled[row] = statistics(np.concatenate([cases_of[index] for index in drawn]))
    tail = (1 - level) / 2
    found = []
    for value, of_resamples in zip(values.tolist(), resampled.T, strict=True):
        defined = of_resamples[np.isfinite(of_resamples)]
        if not np.isfinite(value):
            found.append(unavailable(undefined))
        elif len(defined) * 2 < num_resamples:
            reason = f"undefined in {num_resamples - len(defined)} resamples"
            found.append(Estimate(value, None, reason))
        else:
            low, high = np.quantile(defined, [tail, 1 - tail])
            found.append(Estimate(value, (float(low), float(high))))
    return found


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
