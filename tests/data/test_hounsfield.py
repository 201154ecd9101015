"""Air and soft tissue are where HU puts them, or the volume is not in HU."""

import numpy as np

from mg3d.data.hounsfield import problem
from mg3d.ledger import Reason


def chest() -> np.ndarray:
    volume = np.full((16, 16, 16), -1000, np.float32)
    volume[4:12, 4:12] = 30
    return volume


def test_hu_must_be_where_they_should() -> None:
    assert problem(chest()) is None
    never, twice = problem(chest() + 1024), problem(chest() - 1024)
    assert never is not None
    assert twice is not None
    assert never[0] == twice[0] == Reason.NOT_HU
    assert problem(chest() * 0) == (Reason.CONSTANT, "")
    broken = chest()
    broken[0, 0, 0] = np.nan
    assert problem(broken) == (Reason.NOT_FINITE, "")
