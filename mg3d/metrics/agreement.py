"""Agreement of two measurements of the same thing (Bland and Altman, Lancet 1986)."""

import numpy as np


def bland_altman(measured: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Bias and 95 % limits of agreement of ``measured - reference``, both [N] in one unit.

    Returns (bias, lower, upper) with bias +- 1.96 sample standard deviations; the limits are NaN
    for fewer than two cases.
    """
    difference = np.asarray(measured, float) - np.asarray(reference, float)
    if len(difference) == 0:
        return float("nan"), float("nan"), float("nan")
    bias = float(difference.mean())
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else float("nan")
    return bias, bias - spread, bias + spread
