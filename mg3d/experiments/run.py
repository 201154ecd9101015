"""A tracked pre-training run, and many of them: what `mg3d pretrain`, ablate and scale start."""

import shutil
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mg3d import launch, paths, tracking
from mg3d.fingerprint import Fingerprint, pretrain_fingerprint
from mg3d.params import Params, save_params
from mg3d.training.pretrain import finished
from mg3d.training.studies import write_studies


@dataclass(frozen=True)
class Cell:
    """One run of an experiment. ``name`` is unique in it, e.g. "+SFR, seed 1"."""

    name: str
    params: Params


def fingerprint_of(prepared: Path, params: Params) -> Fingerprint:
    """All that the pre-training of a whole params file depends on."""
    return pretrain_fingerprint(
        prepared, params.contract, params.model, params.objective, params.pretrain
    )


def run_folder(prepared: Path, out: Path, params: Params) -> Path:
    """The folder in ``out`` that belongs to these params, data and code."""
    return out / f"pretrain-{fingerprint_of(prepared, params).digest}"


def pretrain_on_ranks(
    prepared: Path,
    out: Path,
    params: Params,
    *,
    name: str = "pretrain",
    resume: Path | None = None,
    force: bool = False,
    parent: Path | None = None,
    nodes: launch.Nodes = launch.ONE_NODE,
) -> Path:
    """Start ``pretrain.num_ranks`` ranks of `mg3d pretrain` unless the run is finished already.

    Another process that has begun the same run is waited for. Of several nodes, which share
    ``prepared`` and ``out``, each calls this; node 0 writes the params and opens the MLflow run
    before it joins the others, and no rank starts before that.

    The run's folder is ``resume``, or in ``out`` under its fingerprint's name. Returns the final
    checkpoint. ``name`` and ``parent`` (a folder; a pipeline of its own when left out) are for the
    MLflow run. Raises ValueError for a
    folder that holds another run (see `mg3d.training.pretrain.finished`), CommandError for a rank
    that fails, SystemExit with RESUMABLE after SIGTERM.
    """
    fingerprint = fingerprint_of(prepared, params)
    folder = resume or run_folder(prepared, out, params)
    num_steps = params.pretrain.num_steps
    if done := finished(folder, fingerprint, num_steps, force):
        return done
    command = ["pretrain", str(prepared), "--params", str(folder / paths.RUN_PARAMS)]
    command += ["--resume", str(resume)] if resume else ["--out", str(out)]
    command += ["--force"] if force else []
    ranks = (params.pretrain.num_ranks, params.pretrain.num_threads_per_rank)
    if nodes.rank > 0:
        launch.torchrun(command, *ranks, nodes=nodes)
        return _complete(folder, fingerprint, num_steps, force)
    folder.mkdir(parents=True, exist_ok=True)
    save_params(params, folder / paths.RUN_PARAMS)
    for picture in sorted(paths.stage_folder("inspect", prepared).glob("*.png")):
        (folder / paths.FIGURES).mkdir(exist_ok=True)
        shutil.copy(picture, folder / paths.FIGURES / f"data_{picture.name}")
    parent = parent or tracking.pipeline(folder, params)
    with tracking.track(folder, name, params, parent=parent, system_metrics=True) as tracked:
        tracked.log_datasets(tracking.dvc_hashes(prepared), "training")
        if finished(folder, fingerprint, num_steps, force) is None:  # nobody was faster
            launch.torchrun(command, *ranks, nodes=nodes)
        tracked.log_folder(folder / paths.FIGURES)
        write_studies(prepared, folder)
        tracked.log_table(folder / paths.STUDIES)
        done = _complete(folder, fingerprint, num_steps, force)
        tracked.set_checkpoint(done)
    return done


def _complete(folder: Path, fingerprint: Fingerprint, num_steps: int, force: bool) -> Path:
    done = finished(folder, fingerprint, num_steps, force)
    assert done is not None, f"{folder} is not complete after its training"
    return done


def run_cells(
    cells: Sequence[Cell], prepared: Path, out: Path, parent: Path, num_parallel: int
) -> list[Path]:
    """Final checkpoint of each cell, ``num_parallel`` cells at once; finished ones are found."""

    def run(number: int) -> Path:
        cell = cells[number - 1]
        folder = run_folder(prepared, out, cell.params)
        launch.show(f"cell {number} of {len(cells)}: {cell.name} in {folder}")
        return pretrain_on_ranks(prepared, out, cell.params, name=cell.name, parent=parent)

    numbers = range(1, len(cells) + 1)
    if num_parallel == 1:
        return [run(number) for number in numbers]
    with launch.ended_together(launch.RANKS_GRACE_S), ThreadPoolExecutor(num_parallel) as pool:
        return list(pool.map(run, numbers))


@contextmanager
def resumable() -> Iterator[None]:
    """SIGTERM leaves the block by SystemExit with RESUMABLE: the same command goes on."""
    try:
        with launch.ended_together(launch.RANKS_GRACE_S):
            yield
    except SystemExit as left:
        raise SystemExit(
            launch.RESUMABLE if left.code == 128 + signal.SIGTERM else left.code
        ) from None
