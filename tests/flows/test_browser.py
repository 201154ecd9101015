"""A person's way through the UI: `make up`, the form of evaluate, Run, and what the run shows."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
CHECKPOINT = Path("runs/tiny/checkpoints/step-000001")


def write_project(folder: Path) -> None:
    """A project as after pre-training a tiny model, with one downstream data set."""
    from downstream.conftest import _write
    from downstream.layouts import write_stoic

    from mg3d import paths
    from mg3d.ledger import Ledger, Reason
    from mg3d.params import VolumeContract, load_params, save_params

    for name in ("flows", "params"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("prefect.yaml", "supervisord.conf"):
        shutil.copy(ROOT / name, folder)
    contract = VolumeContract(spacing_mm=(6.0, 6.0, 6.0), shape_voxels=(32, 32, 32))
    save_params(
        load_params(ROOT / "params.yaml", {f"contract.{k}": v for k, v in contract}),
        folder / "params.yaml",
    )
    written = _write(folder / CHECKPOINT.parent, contract, "itc")
    assert written == folder / CHECKPOINT
    write_stoic(paths.task_data("stoic2021", folder / paths.DATA), num_cases=24)
    ledger = Ledger("convert_volumes", "series", ["a", "b", "c"])
    ledger.use("a")
    ledger.use("b")
    ledger.quarantine("c", Reason.LOCALIZER)
    ledger.write(folder / paths.PREPARED / "convert_volumes" / "dicom_export")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`python -m flows.servers up` on free ports; its environment."""
    project = tmp_path_factory.mktemp("up")
    write_project(project)
    ports = {name: str(free_port()) for name in ("PREFECT_PORT", "MLFLOW_PORT", "WORKER_PORT")}
    paths = os.pathsep.join([str(project), str(ROOT)])
    left_out = {"PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {**ports, "PYTHONPATH": paths, "MG3D_ROOT": str(project)}

    def servers(verb: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "flows.servers", verb]
        return subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True)

    try:
        done = servers("up")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"http://127.0.0.1:{ports['PREFECT_PORT']}/deployments" in done.stdout
        yield ports
    finally:
        assert servers("down").returncode == 0
