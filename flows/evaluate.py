"""Fan out the downstream tasks: two at a time, all finish, then fail loudly."""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows import child
from flows.command_line import main
from mg3d import launch, paths
from mg3d.params import load_params


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def evaluate_one(name: str, checkpoint: Path, out: Path, params: Path) -> Path:
    """One downstream task in its own process: its own seed, device and crash."""
    flags = ("--task", name, "--out", out, "--params", params)
    return Path(child.mg3d("evaluate", checkpoint, *flags, label=f"{name} | "))


@flow(task_runner=ThreadPoolTaskRunner(max_workers=2))  # type: ignore[arg-type]
def evaluate(
    checkpoint: Path, params: Path = paths.PARAMS, tasks: list[str] | None = None
) -> list[Path]:
    """Evaluate a checkpoint on the downstream tasks and return their result files.

    Args:
        checkpoint: A checkpoint's folder; results go to the folder of its run.
        params: A complete params file.
        tasks: Names under `downstream` in the params file; all of them when left out.
    """
    names = load_params(params).downstream_tasks(tasks)
    out = checkpoint.parent.parent / "evaluate"
    with launch.ended_together():
        futures = [evaluate_one.submit(name, checkpoint, out / name, params) for name in names]
        wait(futures)
    results = [future.result(raise_on_failure=False) for future in futures]
    failed = {n: r for n, r in zip(names, results, strict=True) if not isinstance(r, Path)}
    if failed:
        # one line each: the log of the task run has the rest, and Prefect repeats this text thrice
        causes = [
            f"\n{name}: {(str(cause).splitlines() or [repr(cause)])[-1].removeprefix('  | ')}"
            for name, cause in failed.items()
        ]
        raise RuntimeError(f"downstream tasks failed: {', '.join(failed)}{''.join(causes)}")
    return results


if __name__ == "__main__":
    main(evaluate)
