"""Which GPUs there are, without CUDA: a flow gives each child one and imports no torch."""

import fcntl
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_S = 0.2
_DRIVER = Path("/proc/driver/nvidia/gpus")


def visible_gpus() -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` lists, else the numbers of those that the driver shows.

    As CUDA has it, the list ends at the first entry that is empty or negative.
    """
    listed = os.environ.get(VISIBLE)
    if listed is None:
        found = list(_DRIVER.iterdir()) if _DRIVER.is_dir() else []
        return [str(number) for number in range(len(found))]
    gpus: list[str] = []
    for entry in map(str.strip, listed.split(",")):
        if not entry or entry.startswith("-"):
            break
        gpus.append(entry)
    return gpus


def places(num_parallel: int, num_gpus: int | None) -> list[str | None]:
    """The GPU of each process that may run at once: ``num_parallel`` on each of the first
    ``num_gpus`` (None: all), spread before doubled; without GPUs ``num_parallel`` times None.
    0 gives "", with which CUDA shows none to a child.

    Raises ValueError if there are fewer.
    """
    gpus: Sequence[str | None] = visible_gpus()
    if num_gpus == 0:
        return [""] * num_parallel
    if num_gpus is not None:
        if num_gpus > len(gpus):
            raise ValueError(
                f"evaluate.num_gpus is {num_gpus}, and {len(gpus)} are visible: lower it, or "
                f"look at {VISIBLE}"
            )
        gpus = gpus[:num_gpus]
    return [gpu for _ in range(num_parallel) for gpu in gpus or [None]]


@contextmanager
def place(num_parallel: int, num_gpus: int | None) -> Iterator[str | None]:
    """Hold one of `places` for the block; wait for one to be free.

    A GPU's places are locked files that all processes of a machine share, so threads, processes and
    the workers of a cluster may ask for one; the kernel frees those of a process that was killed.
    Nothing is held where there is no GPU.
    """
    wanted = places(num_parallel, num_gpus)
    if not wanted[0]:
        yield wanted[0]
        return
    while True:
        seen: Counter[str | None] = Counter()
        for gpu in wanted:
            name = f"mg3d-gpu-{gpu}-{seen[gpu]}.lock"
            seen[gpu] += 1
            with (Path(tempfile.gettempdir()) / name).open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield gpu
                return
        time.sleep(POLL_S)
