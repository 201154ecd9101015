"""The deployments that the Prefect UI shows: `python -m flows.serve` waits for their runs.

One run at a time: each takes the machine, and two `dvc` processes would fight for its lock.
"""

from typing import cast

from prefect import serve
from prefect.deployments.runner import RunnerDeployment

from flows.ablate import ablate
from flows.evaluate import evaluate
from flows.pipeline import pipeline
from flows.prepare import prepare
from flows.pretrain import pretrain
from flows.scale import scale


def deployments() -> list[RunnerDeployment]:
    """One deployment per flow, all named "mg3d"."""
    flows = (pipeline, prepare, pretrain, evaluate, ablate, scale)
    return [cast(RunnerDeployment, flow.to_deployment("mg3d")) for flow in flows]


if __name__ == "__main__":
    serve(*deployments(), limit=1)
