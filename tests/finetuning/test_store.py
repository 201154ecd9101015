"""Content-named arrays: made once, by one process, and again when they are not whole."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mg3d.finetuning.store import Store, keeping, name_of, shared

KEYS = [f"case-{number}" for number in range(6)]


def named(key: str) -> str:
    return name_of(made_from=key)


def run(folder: Path | None, keys: Sequence[str] = KEYS, batch: int = 2) -> list[list[str]]:
    """Which batches were made; what came back is what belongs to each key."""
    batches: list[list[str]] = []

    def make(chosen: Sequence[str]) -> list[np.ndarray]:
        batches.append(list(chosen))
        return [np.full((2, 3), int(key[-1]), np.float32) for key in chosen]

    with keeping(folder):
        found = dict(shared(keys, named, make, batch))
    assert sorted(found) == sorted(keys)
    assert all((array == int(key[-1])).all() for key, array in found.items())
    return batches


def test_made_once_in_batches_and_then_read(tmp_path: Path) -> None:
    assert run(tmp_path, KEYS[:3]) == [KEYS[:2], KEYS[2:3]]
    assert run(tmp_path) == [KEYS[3:5], KEYS[5:]]
    assert run(tmp_path) == []
    assert run(None) == [KEYS[:2], KEYS[2:4], KEYS[4:]]  # without a folder nothing is kept


def test_a_file_that_is_cut_short_is_made_again(tmp_path: Path) -> None:
    run(tmp_path)
    first, second, third, *_ = sorted(tmp_path.glob("??/*.npy"))
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes(second.read_bytes()[:20])
    third.write_bytes(b"")
    assert sum(map(len, run(tmp_path))) == 3
    assert run(tmp_path) == []


def test_what_cannot_be_made_is_left_out_and_not_kept(tmp_path: Path) -> None:
    asked: list[str] = []

    def make(keys: Sequence[str]) -> list[None]:
        asked.extend(keys)
        return [None] * len(keys)

    with keeping(tmp_path):
        assert dict(shared(KEYS[:1], named, make)) == {}
        assert dict(shared(KEYS[:1], named, make)) == {}
    assert asked == KEYS[:1] * 2
    assert not list(tmp_path.glob("??/*.npy"))


def test_the_name_is_all_that_it_is_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    from mg3d.finetuning import store

    assert name_of(a=1, b=[2]) == name_of(b=[2], a=1)
    before = name_of(a=1)
    monkeypatch.setattr(store, "_made_by", lambda: {"code": "other"})
    assert name_of(a=1) != before


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    run(tmp_path)
    files = sorted(tmp_path.glob("??/*.npy"))
    for age, file in enumerate(files):
        os.utime(file, (1000 - age, 1000 - age))
    size = files[0].stat().st_size
    Store(tmp_path, 2.5 * size / 2**30).close()
    assert sorted(tmp_path.glob("??/*.npy")) == files[:2]


def slowly(folder: Path, answers: "multiprocessing.Queue[list[str]]") -> None:
    made: list[str] = []

    def make(keys: Sequence[str]) -> list[np.ndarray]:
        made.extend(keys)
        time.sleep(0.2)
        return [np.full(4, int(key[-1]), np.float32) for key in keys]

    with keeping(folder):
        found = dict(shared(KEYS, named, make))
    assert {key: float(array[0]) for key, array in found.items()} == {k: int(k[-1]) for k in KEYS}
    answers.put(made)


def test_two_processes_at_once_share_the_work(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=slowly, args=(tmp_path, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    made = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert sorted(made[0] + made[1]) == KEYS  # each by one of the two, none twice
    assert all(made)


def killed(folder: Path) -> None:
    def make(keys: Sequence[str]) -> list[np.ndarray]:
        os._exit(9)

    with keeping(folder):
        list(shared(KEYS, named, make))


def test_a_process_that_dies_gives_its_claims_back(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path,))
    worker.start()
    worker.join(timeout=60)
    assert worker.exitcode == 9
    assert sum(map(len, run(tmp_path))) == len(KEYS)
