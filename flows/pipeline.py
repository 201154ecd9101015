"""The main job: prepare -> pretrain -> evaluate -> register."""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows import child
from flows.artifacts import publish
from flows.command_line import main
from flows.evaluate import evaluate
from flows.form import Overrides, Profile, given
from flows.prepare import prepare
from flows.pretrain import pretrain
from mg3d import paths
from mg3d.params import Mode, TaskName, load_params, resolve


@task(cache_policy=NO_CACHE)
def register(run: Path, params: Path) -> str:
    """The encoder of the run becomes a version of the registered model."""
    return child.mg3d("register", run, "--params", params)


@flow
def pipeline(
    params: Profile = paths.PARAMS,
    tasks: list[TaskName] = [],  # noqa: B006
    modes: list[Mode] = [],  # noqa: B006
    seed: int | None = None,
    overrides: Overrides = {},  # noqa: B006
) -> Path:
    """From a DICOM and report export to a registered encoder; prints the results, returns the run.

    Args:
        params: A complete params file.
        tasks: Downstream tasks to evaluate on; all of them when left out.
        modes: Of each task that knows them; `evaluate.modes` of the file when left out.
        seed: Of pre-training; the file's when left out.
        overrides: `section.key`: value, instead of the file's.
    """
    params = resolve(params, given(overrides, pretrain__seed=seed, evaluate__modes=modes))
    # a mistake must not surface after hours of training
    load_params(params).downstream_tasks(tasks)
    prepare(params)
    checkpoint = pretrain(params)
    evaluate(checkpoint, params, tasks)
    run = checkpoint.parent.parent
    register(run, params)
    publish(run)
    return run


if __name__ == "__main__":
    main(pipeline)
