"""Loss against the size of the data: L(n) = a + b · n^(-c) (Hestness et al. 2017)."""

import warnings
from dataclasses import dataclass

import numpy as np

NUM_FOR_FLOOR = 4  # sizes below which floor, scale and exponent cannot be told apart
MAX_EXPONENT = 5.0


@dataclass(frozen=True)
class PowerLaw:
    """A fitted curve. ``residuals``: loss - curve at each point, in the order given."""

    floor: float
    scale: float
    exponent: float
    residuals: tuple[float, ...]
    note: str

    def __call__(self, n: np.ndarray) -> np.ndarray:
        """The curve at sizes ``n``."""
        return self.floor + self.scale * np.asarray(n, float) ** -self.exponent

    @property
    def formula(self) -> str:
        """E.g. ``0.2 + 3.1 n^-0.45``."""
        floor = f"{self.floor:.3g} + " if self.floor else ""
        return f"{floor}{self.scale:.3g} n^{-self.exponent:.3g}"


def fit_power_law(n: np.ndarray, loss: np.ndarray) -> PowerLaw:
    """Least squares of ``loss`` [P] (positive) over sizes ``n`` [P].

    With fewer than 4 different sizes three parameters are not identifiable: the floor a is then 0,
    and ``note`` says so. A negative exponent is a loss that rises with the data. Raises ValueError
    for fewer than 2 sizes, or a loss that is not positive.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    n, loss = np.asarray(n, float), np.asarray(loss, float)
    sizes = len(np.unique(n))
    if sizes < 2:
        raise ValueError(f"a curve needs at least 2 sizes and there is {sizes}: add some")
    if not (loss > 0).all():
        raise ValueError(f"a power law is of positive losses, not {loss.tolist()}")
    middle = np.exp(np.log(n).mean())  # in units of it, scale and exponent hardly depend
    slope, level = np.polyfit(np.log(n / middle), np.log(loss), 1)
    if sizes >= NUM_FOR_FLOOR:
        (floor, scale, exponent), _ = curve_fit(
            lambda x, a, b, c: a + b * (x / middle) ** -c,
            n,
            loss,
            p0=(0.5 * loss.min(), 0.5 * np.exp(level), np.clip(-slope, 0.01, MAX_EXPONENT - 0.01)),
            bounds=([0, 0, -MAX_EXPONENT], [loss.min(), np.inf, MAX_EXPONENT]),
            max_nfev=20000,
        )
        note = f"three parameters on {len(n)} points of {sizes} sizes"
    else:
        floor = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # two points have no covariance
            (scale, exponent), _ = curve_fit(
                lambda x, b, c: b * (x / middle) ** -c,
                n,
                loss,
                p0=(np.exp(level), np.clip(-slope, -MAX_EXPONENT, MAX_EXPONENT)),
                bounds=([0, -MAX_EXPONENT], [np.inf, MAX_EXPONENT]),
            )
        note = f"two parameters, no floor: {sizes} sizes do not identify three"
    law = PowerLaw(float(floor), float(scale * middle**exponent), float(exponent), (), note)
    return PowerLaw(law.floor, law.scale, law.exponent, tuple((loss - law(n)).tolist()), note)
