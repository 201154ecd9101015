"""What runs a flow's tasks side by side: threads, processes, or a Dask cluster.

Each task only waits for a child process, so threads are enough on one machine. A Dask scheduler's
address spreads the tasks over a cluster whose machines share the project's folder and have this
environment; they need a Prefect server too (PREFECT_API_URL).
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from mg3d import gpus
from mg3d.params import Evaluate


def task_runner(params: Evaluate) -> TaskRunner[Any]:
    """The runner that ``evaluate.runner`` names, with as many workers as there are places.

    A cluster that is there already has the workers that it has. Raises ValueError without Dask.
    """
    num_workers = len(gpus.places(params.num_parallel, params.num_gpus))
    if params.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=num_workers)
    if params.runner == "processes":
        return ProcessPoolTaskRunner(max_workers=num_workers)
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise ValueError(
            f"evaluate.runner {params.runner} needs Dask: pip install 'mg3d[dask]'"
        ) from error
    if params.runner != "dask":
        return DaskTaskRunner(address=params.runner)
    here = {"host": "127.0.0.1", "dashboard_address": None}
    workers = {"n_workers": num_workers, "threads_per_worker": 1}
    return DaskTaskRunner(cluster_kwargs=here | workers)


@contextmanager
def workers_ended(runner: TaskRunner[Any]) -> Iterator[None]:
    """If an exception leaves the block, end the processes of a pool, which would work on.

    What they have started ends with them (:mod:`mg3d.tether`). A Dask cluster ends its own.
    """
    try:
        yield
    except BaseException:
        if isinstance(runner, ProcessPoolTaskRunner):
            for process in multiprocessing.active_children():
                process.kill()
        raise
