"""GPU slots are shared by flow runs, waited for, and given back."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect import flow
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

from flows.evaluate import evaluate
from flows.gpu import LIMIT, gpu_slots
from flows.pretrain import pretrain


@pytest.fixture
def two_gpus(children: Any) -> Iterator[None]:
    with prefect.get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=2))
        yield
        client.delete_global_concurrency_limit_by_name(LIMIT)


def active_slots() -> int:
    with prefect.get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(LIMIT).active_slots


def test_a_pretraining_waits_for_the_slots_of_another_run(two_gpus: None, children: Any) -> None:
    held, free = threading.Event(), threading.Event()

    @flow
    def other() -> None:
        with gpu_slots(1):
            held.set()
            assert free.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(60)
    assert active_slots() == 1
    second = threading.Thread(target=pretrain)
    second.start()
    time.sleep(3)
    assert children.started() == []  # two ranks, and one of two GPUs is taken
    free.set()
    thread.join(timeout=60)
    second.join(timeout=120)
    assert [call[0] for call in children.started()] == ["pretrain"]
    assert active_slots() == 0


def test_a_slot_for_each_cell(two_gpus: None, children: Any, tmp_path: Path) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(
        text.replace("  num_parallel: 2 # cells at once, a process", "  num_parallel: 4 #")
    )
    names = ["stoic2021", "msd_lung", "acdc", "cc_ccii"]
    evaluate(Path("runs/pretrain-0/checkpoints/step-000002"), tasks=names)
    running = most = 0
    for event, *_ in children.events():
        running += 1 if event == "start" else -1
        most = max(most, running)
    assert most == 2
    assert active_slots() == 0


def test_more_ranks_than_gpus_is_an_error_that_names_the_remedy(
    two_gpus: None, children: Any
) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("  num_ranks: 2", "  num_ranks: 4"))
    with pytest.raises(ValueError, match="4 GPU slots are needed and the limit `gpu` has 2"):
        pretrain()
    assert children.started() == []
