"""Counter-based random draws: the same name gives the same numbers on any machine, in any order.

Only the raw 64-bit words of Philox-4x64-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011) are used. Everything else is integer arithmetic or one IEEE multiplication, so
no result depends on a library's sampling algorithm, on SIMD order or on who drew before.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """A named stream of random numbers, e.g. ``Draws(0, "patient", 17, "anatomy")``."""

    def __init__(self, seed: int, *names: str | int) -> None:
        self.name = (seed, *names)
        digest = hashlib.sha256("/".join(map(str, self.name)).encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def child(self, *names: str | int) -> "Draws":
        """The stream ``names`` below this one; independent of what was drawn here."""
        seed, *above = self.name
        return Draws(int(seed), *above, *names)

    def raw(self, count: int) -> np.ndarray:
        """``count`` uniform uint64."""
        return np.asarray(self._bits.random_raw(count), dtype=np.uint64)

    def fraction(self) -> float:
        """Uniform in [0, 1), a multiple of 2**-53."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.fraction()

    def integer(self, low: int, high: int) -> int:
        """Uniform integer in [low, high], both included (bias below 2**-50)."""
        return low + ((int(self._bits.random_raw()) * (high - low + 1)) >> 64)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.fraction() < probability

    def choice(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[self.integer(0, len(options) - 1)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order (Fisher-Yates)."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = self.integer(0, last)
            result[last], result[other] = result[other], result[last]
        return result

    def digits(self, count: int) -> str:
        """``count`` random decimal digits."""
        return "".join(str(self.integer(0, 9)) for _ in range(count))

    def uid(self) -> str:
        """A DICOM UID below 2.25 (PS3.5 B.2), made from the stream instead of a UUID."""
        high, low = (int(word) for word in self.raw(2))
        return f"2.25.{(high << 64) | low}"
