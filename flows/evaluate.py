"""Fan out the downstream tasks, their modes, seeds and folds: all finish, then fail loudly."""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait

from flows import child
from flows.artifacts import publish
from flows.command_line import main
from flows.form import Overrides, Profile, given
from flows.gpu import gpu_slots
from flows.runners import task_runner, workers_ended
from mg3d import gpus, launch, paths
from mg3d.params import Cell, Mode, TaskName, load_params, resolve


@task(task_run_name="{cell}", cache_policy=NO_CACHE)
def evaluate_one(cell: Cell, checkpoint: Path, params: Path) -> Path:
    """One cell in its own process: its own seed, GPU, memory limit and crash."""
    flags: tuple[str, ...] = ("--task", cell.task, "--mode", cell.mode, "--seed", str(cell.seed))
    if cell.fold is not None:
        flags += ("--fold", str(cell.fold))
    out = paths.cell_folder(checkpoint.parent.parent, *cell)
    command: tuple[str | Path, ...] = ("evaluate", checkpoint, *flags, "--out", out)
    command += ("--params", params)
    limits = load_params(params).evaluate
    with gpu_slots(1), gpus.place(limits.num_parallel, limits.num_gpus) as gpu:
        env = {} if gpu is None else {gpus.VISIBLE: gpu}
        return Path(child.mg3d(*command, label=f"{cell} | ", env=env))


@flow
def evaluate(
    checkpoint: Path,
    params: Profile = paths.PARAMS,
    tasks: list[TaskName] = [],  # noqa: B006
    modes: list[Mode] = [],  # noqa: B006
    seeds: list[int] = [],  # noqa: B006
    overrides: Overrides = {},  # noqa: B006
) -> list[Path]:
    """Evaluate a checkpoint on the downstream tasks and return their result files.

    Args:
        checkpoint: A checkpoint's folder; results go to the folder of its run.
        params: A complete params file; its section `evaluate` says which folds, too.
        tasks: Names under `downstream` in the params file; all of them when left out.
        modes: Of each task that knows them; `evaluate.modes` of the file when left out.
        seeds: Of each task; `evaluate.seeds` of the file when left out.
        overrides: `section.key`: value, instead of the file's.
    """
    params = resolve(params, given(overrides, evaluate__modes=modes, evaluate__seeds=seeds))
    tree = load_params(params)
    cells = tree.cells(tasks)
    with task_runner(tree.evaluate) as runner, workers_ended(runner), launch.ended_together():
        futures: list[PrefectFuture[Path]] = [
            runner.submit(evaluate_one, {"cell": cell, "checkpoint": checkpoint, "params": params})
            for cell in cells
        ]
        wait(futures)
    results = [future.result(raise_on_failure=False) for future in futures]
    run = checkpoint.parent.parent
    if any(isinstance(result, Path) and result.exists() for result in results):
        child.mg3d("table", run)
    publish(run)
    failed = {c: r for c, r in zip(cells, results, strict=True) if not isinstance(r, Path)}
    if failed:
        # one line each: the log of the task run has the rest, and Prefect repeats this text thrice
        causes = [
            f"\n{cell}: {(str(cause).splitlines() or [repr(cause)])[-1].removeprefix('  | ')}"
            for cell, cause in failed.items()
        ]
        names = ", ".join(map(str, failed))
        raise RuntimeError(f"downstream tasks failed: {names}{''.join(causes)}")
    return results


if __name__ == "__main__":
    main(evaluate)
