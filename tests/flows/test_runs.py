"""Runs that are cancelled or killed: a real server, a real worker, a real (tiny) training."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import prefect
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from flows.reconcile import reconcile, watch
from mg3d import launch, paths
from mg3d.params import load_params, save_params

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tiny_prepared import CONTRACT, OBJECTIVE, PRETRAIN, tiny_model, write_prepared

ROOT = Path(__file__).parents[2]
WORKER = (
    "from prefect import serve; from flows.pretrain import pretrain; "
    "serve(pretrain.to_deployment('mg3d'))"
)
pytestmark = pytest.mark.timeout(1800)


def until(condition: Callable[[], Any], what: str, timeout_s: float = 600.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.3)
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process that leads a session, and to all that is in it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    env = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=env | {"PREFECT_HOME": str(home), "PREFECT_API_DATABASE_CONNECTION_URL":
                       f"sqlite+aiosqlite:///{home}/prefect.db"},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def healthy() -> bool:
        assert process.poll() is None, (home / "log").read_text()
        try:
            return bool(urllib.request.urlopen(f"{url}/health", timeout=5).status == 200)
        except OSError:
            return False

    try:
        until(healthy, "a healthy server")
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
    finally:
        end(process)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's root with prepared/ and a params file whose training does not end by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_prepared(tmp_path / "prepared")
    endless = {"num_steps": 10**6, "validate_every_steps": 10**6, "checkpoint_every_steps": 10**6}
    changes = {
        "contract": CONTRACT,
        "model": tiny_model(tmp_path / "text"),
        "objective": OBJECTIVE,
        "pretrain": PRETRAIN.model_copy(update=endless),
    }
    params = load_params(ROOT / paths.PARAMS).model_copy(update=changes)
    save_params(params, tmp_path / paths.PARAMS)
    return tmp_path


@pytest.fixture
def worker(server: str, folder: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a worker in the project's root."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        env = {"PREFECT_API_URL": server, "PREFECT_RUNNER_POLL_FREQUENCY": "2"}
        with (folder / "worker.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER],
                env=os.environ | env, cwd=folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        end(process)


def press_run(folder: Path) -> UUID:
    def deployment() -> Any:
        with suppress(prefect.exceptions.ObjectNotFound):
            return client.read_deployment_by_name("pretrain/mg3d")

    places = {"params": "params.yaml", "prepared": str(folder / "prepared"), "out": "runs"}
    with prefect.get_client(sync_client=True) as client:
        found = until(deployment, "the deployment")
        return client.create_flow_run_from_deployment(found.id, parameters=places).id


def state(run: UUID) -> str:
    with prefect.get_client(sync_client=True) as client:
        found = client.read_flow_run(run).state
    assert found is not None
    return str(found.type.value)


def steps(folder: Path) -> list[int]:
    """The steps whose metrics were recorded, in order."""
    lines = [
        json.loads(line)
        for file in (folder / "runs").glob("pretrain-*/metrics.jsonl")
        for line in file.read_text().splitlines()
    ]
    return [line["step"] for line in lines if "step" in line]


def family(folder: Path) -> list[psutil.Process]:
    """The processes that train: launcher, agent, ranks."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(folder / "prepared") in process.cmdline():
                found.append(process)
    return found


def mlflow_run(folder: Path) -> tuple[str, str]:
    """Id and status of the training's MLflow run."""
    from mg3d import tracking

    (run,) = (folder / "runs").glob("pretrain-*")
    tracked = tracking.attach(run)
    return tracked.run_id, tracked.client.get_run(tracked.run_id).info.status


def test_cancelled_then_killed_then_reconciled(
    folder: Path, worker: Callable[[], subprocess.Popen[bytes]], capfd: pytest.CaptureFixture[str]
) -> None:
    # Cancel, as the UI does: nothing goes on, and a checkpoint of the last step is left.
    first_worker = worker()
    cancelled = press_run(folder)
    until(lambda: len(steps(folder)) >= 2, "two steps of the training")
    processes = family(folder)
    assert len(processes) >= 3
    with prefect.get_client(sync_client=True) as client:
        client.set_flow_run_state(cancelled, Cancelling())
    until(lambda: state(cancelled) == "CANCELLED", "the cancelled run to end")
    _, left = psutil.wait_procs(processes, timeout=5)
    assert left == []
    done = steps(folder)
    (checkpoint,) = (folder / "runs").glob("pretrain-*/checkpoints/step-*")
    assert checkpoint.name == f"step-{done[-1]:06d}"
    first_run, status = mlflow_run(folder)
    assert status == "KILLED"

    # The next run of the same params goes on there, in the same MLflow run.
    killed = press_run(folder)
    until(lambda: len(steps(folder)) >= len(done) + 2, "the training to go on")
    assert steps(folder) == list(range(1, len(steps(folder)) + 1))
    assert mlflow_run(folder) == (first_run, "RUNNING")

    # SIGKILL of the worker and of the flow: the training ends; the states cannot know.
    processes = family(folder)
    flow = [p for p in psutil.Process(first_worker.pid).children() if "prefect" in str(p.cmdline())]
    for process in [psutil.Process(first_worker.pid), *flow]:
        process.kill()
    _, left = psutil.wait_procs(processes, timeout=launch.RANKS_GRACE_S + 15)
    assert left == []
    assert state(killed) == "RUNNING"

    # The reconciler: MLflow at once, Prefect once the run has been silent for long enough.
    assert reconcile(patience_s=3600.0) == []
    assert state(killed) == "RUNNING"
    assert mlflow_run(folder) == (first_run, "KILLED")
    assert reconcile(patience_s=0.5) == [killed]
    assert state(killed) == "CRASHED"
    with prefect.get_client(sync_client=True) as client:
        wanted = prefect.client.schemas.filters.FlowRunFilter(id={"any_": [killed]})
        assert [r.state.type.value for r in client.read_task_runs(flow_run_filter=wanted)] == [
            "CRASHED"
        ]


HANG = "import time\nfrom prefect import flow\n@flow\ndef hang(): time.sleep(600)\nhang()"


def test_the_server_crashes_a_silent_run_by_itself(server: str, tmp_path: Path) -> None:
    watch(patience_s=15.0)
    watch(patience_s=15.0)  # not twice
    with prefect.get_client(sync_client=True) as client:
        assert len(client.read_automations()) == 1
    flow = subprocess.Popen(
        [sys.executable, "-c", HANG],
        env=os.environ | {"PREFECT_API_URL": server}, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip

    def hanging() -> list[UUID]:
        with prefect.get_client(sync_client=True) as client:
            runs = client.read_flow_runs()
        return [run.id for run in runs if run.state_name == "Running" and run.flow_id is not None]

    try:
        (run,) = until(hanging, "the run to start")
        time.sleep(3)  # its first heartbeat
    finally:
        end(flow)
    until(lambda: state(run) == "CRASHED", "the server to notice", 120)
