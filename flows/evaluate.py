"""Fan out the downstream tasks, their modes, seeds and folds: all finish, then fail loudly."""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait

from flows import child
from flows.command_line import main
from flows.gpu import gpu_slots
from flows.runners import task_runner, workers_ended
from mg3d import gpus, launch, paths
from mg3d.params import Cell, load_params


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
    checkpoint: Path, params: Path = paths.PARAMS, tasks: list[str] | None = None
) -> list[Path]:
    """Evaluate a checkpoint on the downstream tasks and return their result files.

    Args:
        checkpoint: A checkpoint's folder; results go to the folder of its run.
        params: A complete params file; its section `evaluate` says which modes, seeds and folds.
        tasks: Names under `downstream` in the params file; all of them when left out.
    """
    tree = load_params(params)
    cells = tree.cells(tasks)
    with task_runner(tree.evaluate) as runner, workers_ended(runner), launch.ended_together():
        futures: list[PrefectFuture[Path]] = [
            runner.submit(evaluate_one, {"cell": cell, "checkpoint": checkpoint, "params": params})
            for cell in cells
        ]
        wait(futures)
    results = [future.result(raise_on_failure=False) for future in futures]
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
