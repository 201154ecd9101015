"""All downstream tasks finish, two at a time, before those that failed are named."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import prefect
import psutil
import pytest
from prefect.client.schemas.filters import FlowRunFilter, LogFilter
from prefect.settings import PREFECT_API_URL

from flows import child
from flows.evaluate import evaluate
from mg3d import gpus
from mg3d.params import Cell, load_params

CHECKPOINT = Path("runs/pretrain-0/checkpoints/step-000002")
EVALUATE = Path("runs/pretrain-0/evaluate")


def names() -> list[str]:
    return list(load_params().downstream.model_dump())


def folder(cell: Cell) -> Path:
    return EVALUATE / cell.task / f"{cell.mode}-seed{cell.seed}"


def call(cell: Cell) -> list[str]:
    return (
        f"evaluate {CHECKPOINT} --task {cell.task} --mode {cell.mode} --seed {cell.seed} "
        f"--out {folder(cell)} --params params.yaml"
    ).split()


def test_every_task_is_called_with_its_own_folder(children: Any) -> None:
    cells = load_params().cells()
    assert [cell.task for cell in cells] == names()
    assert evaluate(CHECKPOINT) == [folder(cell) / "result.json" for cell in cells]
    assert sorted(children.started()) == sorted(map(call, cells))


def test_modes_and_seeds_are_cells_of_their_own(children: Any) -> None:
    text = Path("params.yaml").read_text()
    text = text.replace("  modes: [] #", "  modes: [scratch, frozen] #")
    text = text.replace("  seeds: [] #", "  seeds: [3, 4] #")
    text = text.replace("  num_parallel: 2 # cells at once, a process", "  num_parallel: 3 #")
    Path("params.yaml").write_text(text)
    results = evaluate(CHECKPOINT, tasks=["stoic2021", "ct_rate_retrieval"])
    assert [str(result.parent.relative_to(EVALUATE)) for result in results] == [
        "stoic2021/scratch-seed3",
        "stoic2021/scratch-seed4",
        "stoic2021/frozen-seed3",
        "stoic2021/frozen-seed4",
        "ct_rate_retrieval/frozen-seed3",  # it cannot start from scratch
        "ct_rate_retrieval/frozen-seed4",
    ]
    assert most_at_once(children) == 3


def test_cells_get_one_gpu_each_and_so_many_on_each(
    children: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "4,GPU-7")
    text = Path("params.yaml").read_text()
    text = text.replace("  num_parallel: 2 # cells at once, a process", "  num_parallel: 1 #")
    Path("params.yaml").write_text(text)
    lock, running, most = threading.Lock(), 0, 0
    seen: list[str] = []
    busy: set[str] = set()

    def mg3d(*arguments: Any, label: str, env: dict[str, str]) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            assert env[gpus.VISIBLE] not in busy
            busy.add(env[gpus.VISIBLE])
            seen.append(env[gpus.VISIBLE])
        time.sleep(0.2)
        with lock:
            running -= 1
            busy.discard(env[gpus.VISIBLE])
        return str(arguments[arguments.index("--out") + 1] / "result.json")

    monkeypatch.setattr(child, "mg3d", mg3d)
    evaluate(CHECKPOINT)
    assert most == 2
    assert len(seen) == len(names())
    assert set(seen) == {"4", "GPU-7"}


def most_at_once(children: Any) -> int:
    running = most = 0
    for event, *_ in children.events():
        running += 1 if event == "start" else -1
        most = max(most, running)
    return most


def test_two_at_a_time(children: Any) -> None:
    evaluate(CHECKPOINT)
    assert most_at_once(children) == 2


def test_a_failing_child_lets_the_others_finish_and_is_named(children: Any) -> None:
    first, *others = names()
    children.fail(first)
    with pytest.raises(
        RuntimeError, match=rf"downstream tasks failed: {first}/\w+-seed0\n"
    ) as caught:
        evaluate(CHECKPOINT)
    assert f"the scanner of {first} is on fire" in str(caught.value)
    ended = [call[call.index("--task") + 1] for event, *call in children.events() if event == "end"]
    assert sorted(ended) == sorted(others)


def test_the_server_shows_a_failed_flow_with_one_failed_task(children: Any) -> None:
    _, second, *_ = names()
    children.fail(second)
    state = evaluate(CHECKPOINT, return_state=True)
    assert state.is_failed()
    wanted = FlowRunFilter(id={"any_": [state.state_details.flow_run_id]})
    deadline = time.monotonic() + 30
    states: dict[str, str] = {}
    messages: list[str] = []
    while len(states) < len(names()) and time.monotonic() < deadline:  # they arrive as events
        time.sleep(0.2)
        with prefect.get_client(sync_client=True) as client:
            runs = client.read_task_runs(flow_run_filter=wanted)
        states = {run.name: str(run.state_name) for run in runs if run.state.is_final()}
        messages = [str(run.state.message) for run in runs if run.state.is_failed()]
    assert states == {
        str(cell): "Failed" if cell.task == second else "Completed"
        for cell in load_params().cells()
    }
    assert "exited with code 3; its last lines:" in messages[0]


def test_a_chosen_subset(children: Any) -> None:
    evaluate(CHECKPOINT, tasks=names()[1:2])
    assert [call[3] for call in children.started()] == names()[1:2]


def test_lines_are_shown_once_here_and_once_in_the_ui(
    children: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (name,) = names()[:1]
    state = evaluate(CHECKPOINT, tasks=[name], return_state=True)
    captured = capfd.readouterr()
    assert (captured.out + captured.err).count(f"scoring {name}") == 1
    assert re.search(rf"^{name}/\w+-seed0 \| scoring {name}$", captured.out, re.MULTILINE)
    wanted = LogFilter(flow_run_id={"any_": [state.state_details.flow_run_id]})
    deadline = time.monotonic() + 30
    messages: list[str] = []
    while f"scoring {name}" not in messages and time.monotonic() < deadline:  # sent in batches
        time.sleep(0.2)
        with prefect.get_client(sync_client=True) as client:
            messages = [log.message for log in client.read_logs(wanted)]
    assert messages.count(f"scoring {name}") == 1


def test_sigterm_to_the_flow_ends_its_children(children: Any) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom flows import child\n"
        "child.MG3D = (sys.executable, 'child.py')\n"
        f"from flows.evaluate import evaluate\nevaluate(Path({str(CHECKPOINT)!r}))"
    )
    environment = {"PREFECT_API_URL": PREFECT_API_URL.value(), "ASLEEP": " ".join(names())}
    flow = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(children.started()) < 2:
        assert flow.poll() is None, "the flow ended by itself"
        assert time.monotonic() < deadline, "the flow did not start its children"
        time.sleep(0.1)
    family = psutil.Process(flow.pid).children(recursive=True)
    asleep = [process for process in family if process.cmdline()[1:2] == ["child.py"]]
    assert len(asleep) == 2
    flow.send_signal(signal.SIGTERM)
    flow.wait(timeout=45)
    _, left = psutil.wait_procs(asleep, timeout=2)
    assert not left
    assert len(children.started()) == 2  # the queue is not worked off after the signal
