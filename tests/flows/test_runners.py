"""The cells of an evaluation come out the same, whatever ran them side by side."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from prefect.settings import PREFECT_API_URL

from flows.evaluate import evaluate
from mg3d import paths
from mg3d.finetuning import retrieval
from mg3d.params import Stoic2021, load_params, save_params
from mg3d.phantom.cohort import write_cohort

sys.path.insert(0, str(Path(__file__).parents[1]))
from downstream.conftest import checkpoint, contract, fusing_checkpoint  # noqa: F401
from downstream.layouts import write_stoic

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:  # noqa: F811
    """A project's root with one small data set, a checkpoint and a params file of two cells."""
    folder = tmp_path_factory.mktemp("project")
    write_stoic(folder / "data" / "downstream" / "stoic2021", num_cases=24)
    run = folder / "runs" / "pretrain-x"
    shutil.copytree(checkpoint, run / paths.CHECKPOINTS / checkpoint.name)
    tree = load_params(ROOT / paths.PARAMS)
    small = Stoic2021(num_steps=2, batch_size=4, test_fraction=0.5, num_bootstrap=100)
    cells = tree.evaluate.model_copy(update={"modes": ("frozen", "scratch")})
    tree = tree.model_copy(
        update={
            "downstream": tree.downstream.model_copy(update={"stoic2021": small}),
            "evaluate": cells,
        }
    )
    save_params(tree, folder / paths.PARAMS)
    return folder


def outcome(result: Path) -> dict[str, Any]:
    """What a cell found: scores, selection, and each prediction file."""
    found = json.loads(result.read_text())
    folder = result.parent / "predictions"
    files = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    files.pop(folder / retrieval.COST, None)  # seconds
    scores = {key: found[key] for key in ("headline", "metrics", "nulls", "selection", "cases")}
    return scores | {str(file.relative_to(folder)): content for file, content in files.items()}


def run_in(project: Path, folder: Path, runner: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    shutil.copytree(project, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    text = Path("params.yaml").read_text()
    assert "runner: threads" in text
    Path("params.yaml").write_text(text.replace("runner: threads", f"runner: {runner}"))
    (found,) = Path("runs/pretrain-x/checkpoints").iterdir()
    results = evaluate(found, tasks=["stoic2021"])
    assert {result.parent.name for result in results} == {"scratch-seed0", "frozen-seed0"}
    return [outcome(result) for result in results]


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_server")
def test_processes_and_a_dask_cluster_give_the_results_of_threads(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run_in(project, tmp_path / "threads", "threads", monkeypatch)
    assert len(expected[0]) > 6  # there are predictions
    assert run_in(project, tmp_path / "processes", "processes", monkeypatch) == expected
    assert run_in(project, tmp_path / "dask", "dask", monkeypatch) == expected


#: Of the demo: a classification, the zero-shot retrieval, a segmentation.
COHORT_TASKS = ("cc_ccii", "ct_rate_retrieval", "covid19_20")
#: The tasks' data sets are the same without the sources of pre-training, which no task reads.
NO_PRETRAINING = {"num_patients": 4, "num_ct_rate_scans": 0, "num_ctrg_studies": 0}
FEW_STEPS = {"downstream.cc_ccii.num_steps": 4, "downstream.covid19_20.num_steps": 2} | {
    f"downstream.{task}.num_bootstrap": 100 for task in COHORT_TASKS
}


def evaluate_cohort(
    cohort: Path, trained: Path, folder: Path, runner: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, Any]]:
    """Outcome by cell of the demo's params in ``folder``, which shares nothing but the cohort."""
    run = folder / "runs" / "pretrain-x"
    shutil.copytree(trained, found := run / paths.CHECKPOINTS / trained.name)
    (folder / paths.DATA).symlink_to(cohort)
    shutil.copy(ROOT / paths.PARAMS, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    results = evaluate(
        found.relative_to(folder),
        tasks=list(COHORT_TASKS),
        overrides=FEW_STEPS | {"evaluate.runner": runner},
    )
    return {"/".join(result.parts[-3:-1]): outcome(result) for result in results}


@contextmanager
def dask_cluster(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """A scheduler and two workers that work in ``folder``: its address, what each worker printed.

    Three processes that know each other by TCP alone, as on several machines.
    """
    folder.mkdir()
    where = folder / "scheduler.json"
    logs = [folder / "one.txt", folder / "two.txt"]
    here = ("--scheduler-file", where, "--host", "127.0.0.1", "--no-dashboard")
    alone = ("--no-nanny", "--nthreads", "1", "--local-directory", folder / "scratch")
    commands = {folder / "scheduler.txt": ("scheduler", *here, "--port", "0")} | {
        log: ("worker", *here, *alone, "--name", log.stem) for log in logs
    }
    with ExitStack() as stack:
        for log, command in commands.items():
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *map(str, command)],
                cwd=folder,
                env=os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())},
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        with Client(scheduler_file=str(where), timeout=120) as client:
            client.wait_for_workers(len(logs), timeout=120)
            address = client.scheduler.address
        yield address, logs


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("_server")
def test_a_cluster_of_two_workers_gives_the_demos_cohort_the_results_of_threads(
    fusing_checkpoint: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort = tmp_path / "cohort"
    demo = load_params(ROOT / paths.PARAMS).write_cohort
    write_cohort(cohort, demo.model_copy(update=NO_PRETRAINING))
    expected = evaluate_cohort(
        cohort, fusing_checkpoint, tmp_path / "threads", "threads", monkeypatch
    )
    assert {cell.split("/")[0] for cell in expected} == set(COHORT_TASKS)
    assert all(len(found) > 6 for found in expected.values())  # there are predictions
    with dask_cluster(tmp_path / "dask") as (address, logs):
        found = evaluate_cohort(cohort, fusing_checkpoint, tmp_path / "dask", address, monkeypatch)
        ran = [set(re.findall(r"^(\S+/\S+) \| ", p.read_text(), re.MULTILINE)) for p in logs]
    assert found == expected
    assert all(ran), "a worker had nothing to do"
    assert not ran[0] & ran[1]
    assert ran[0] | ran[1] == set(expected)


CELL = """
import sys, time
from mg3d import launch
from flows import runners
from mg3d.params import Evaluate
from prefect import flow, task

@task
def cell(number):
    launch.run([sys.executable, "-c", "import time; time.sleep(300)", "asleep", sys.argv[1]])

@flow
def cells():
    runner = runners.task_runner(Evaluate(runner=sys.argv[2], num_parallel=2))
    with runner, runners.workers_ended(runner), launch.ended_together():
        for future in [runner.submit(cell, {"number": n}) for n in range(4)]:
            future.result()

if __name__ == "__main__":
    cells()
"""


@pytest.mark.usefixtures("_server")
@pytest.mark.parametrize("runner", ["processes", "dask"])
def test_sigterm_to_the_flow_ends_what_its_workers_run(tmp_path: Path, runner: str) -> None:
    (tmp_path / "cells.py").write_text(CELL)
    flow = subprocess.Popen(
        [sys.executable, "cells.py", str(tmp_path), runner],
        env=os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())},
        cwd=tmp_path,
    )

    def asleep() -> list[psutil.Process]:
        found = psutil.Process(flow.pid).children(recursive=True)
        return [p for p in found if p.cmdline()[1:2] == ["-c"] and "asleep" in p.cmdline()]

    deadline = time.monotonic() + 120
    while len(sleeping := asleep()) < 2:
        assert flow.poll() is None, "the flow ended by itself"
        assert time.monotonic() < deadline, "the flow did not start its children"
        time.sleep(0.2)
    flow.send_signal(signal.SIGTERM)
    flow.wait(timeout=60)
    _, left = psutil.wait_procs(sleeping, timeout=20)
    assert left == []
