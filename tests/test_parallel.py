"""The parallel map: order, workers, exceptions, and progress with an ETA."""

import pytest

from mg3d import parallel
from mg3d.parallel import parallel_map, progress


def square(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number * number


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_the_order_of_the_items(num_workers: int) -> None:
    assert list(parallel_map(square, range(20), num_workers, "x")) == [n * n for n in range(20)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_exception_propagates(num_workers: int) -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        list(parallel_map(square, [1, -1], num_workers, "x"))


def test_progress_says_how_long_it_will_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 100, 6))  # six seconds pass between two looks
    monkeypatch.setattr(parallel.time, "monotonic", lambda: float(next(clock)))
    assert list(progress(iter("abc"), 3, "volumes")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "volumes: 1/3, 12 s left",
        "volumes: 2/3, 6 s left",
        "volumes: 3/3, 0 s left",
        "volumes: 3/3, 24.0 s",
    ]
