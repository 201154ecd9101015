"""The main job: prepare -> pretrain -> evaluate -> register -> table."""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows import child
from flows.command_line import main
from flows.evaluate import evaluate
from flows.prepare import prepare
from flows.pretrain import pretrain
from mg3d import paths
from mg3d.params import load_params


@task(cache_policy=NO_CACHE)
def register(run: Path, params: Path) -> str:
    """The encoder of the run becomes a version of the registered model."""
    return child.mg3d("register", run, "--params", params)


@flow
def pipeline(params: Path = paths.PARAMS, tasks: list[str] | None = None) -> Path:
    """From a DICOM and report export to a registered encoder; prints the results, returns the run.

    Args:
        params: A complete params file.
        tasks: Downstream tasks to evaluate on; all of them when left out.
    """
    load_params(params).downstream_tasks(
        tasks
    )  # a mistake must not surface after hours of training
    prepare(params)
    checkpoint = pretrain(params)
    evaluate(checkpoint, params, tasks)
    run = checkpoint.parent.parent
    register(run, params)
    child.mg3d("table", run)
    return run


if __name__ == "__main__":
    main(pipeline)
