"""`python -m flows.serve`: write the deployments of prefect.yaml, then take their runs.

The server is that of ``PREFECT_API_URL``. The work pool is made if it is not there; one that was
changed in the UI stays as it is.
"""

import os
import sys
from pathlib import Path

import typer
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows import child, reconcile
from mg3d import launch, paths

POOL = "mg3d"
PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
DEPLOYMENTS = Path("prefect.yaml")


def deploy() -> None:
    """Bring work pool and deployments on the server up to date with prefect.yaml."""
    os.environ.setdefault("MG3D_ROOT", str(paths.ROOT))
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(
                WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template)
            )
    lines: list[str] = []  # of interest if it fails, and then the error has the last ones
    launch.run([*PREFECT, "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)], lines.append)
    reconcile.watch()


def main(limit: int = 1) -> None:
    """Deploy, close what a killed worker left open in MLflow, then become the worker.

    Args:
        limit: Runs at once. Each takes the machine, and two `dvc` would fight for their lock.
    """
    deploy()
    launch.run([*child.MG3D, "reconcile", str(paths.RUNS)], print)
    worker = ("worker", "start", "--pool", POOL, "--limit", str(limit), "--with-healthcheck")
    os.execv(PREFECT[0], [*PREFECT, *worker])


if __name__ == "__main__":
    typer.run(main)
