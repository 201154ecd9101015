"""What does a frozen evaluation cost per case, against the bare forward passes that it needs?

``python benchmarks/evaluation.py CHECKPOINT [TASKS...]`` on the data under ``data/downstream``,
with the params of ``params.yaml``, ``frozen`` (or ``zero_shot`` where that is the task's mode).
Columns, in CPU milliseconds per case (a busy machine does not count):

- *read*: the image, from its official file to the volume contract, to a scan, or to the grid of a
  segmentation network
- *passes*: samples through an encoder: volumes, cubes around candidates, crops and windows
- *forward*: the encoder on batches of the same shapes, nothing else
- *rest*: everything else of `Kind.predict`: head or decoder, null baselines, prediction files
- *ratio*: (forward + rest) / forward; 1.2 is the target where the head is a linear map
- *second cell*: all of it again, with what the first one left in the cache
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from mg3d import paths
from mg3d.downstream import DOWNSTREAM
from mg3d.finetuning import candidates, images, segmentation
from mg3d.finetuning.cases import Case
from mg3d.finetuning.selection import ClosedSplit, Selection, selecting
from mg3d.finetuning.splits import SPLIT_SEED, split_cases
from mg3d.finetuning.store import keeping
from mg3d.finetuning.task import DownstreamTask
from mg3d.ledger import Ledger
from mg3d.models.vision import VolumeEncoder
from mg3d.params import Finetune, load_params
from mg3d.training.checkpoint import load_encoder

READERS: tuple[tuple[Any, str], ...] = (
    (images, "read_case"),
    (candidates, "_opened"),
    (segmentation, "load_cases"),
)
MIN_TIMED = 8
Shape = tuple[int, ...]


def main(checkpoint: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    params = load_params()
    encoder, _, _ = load_encoder(checkpoint)
    print("| task | kind | cases | read | passes | forward | rest | ratio | second cell |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in names or list(DOWNSTREAM):
        task, section = DOWNSTREAM[name], params.downstream.task(name)
        if section.mode != "zero_shot":
            section = section.model_copy(update={"mode": "frozen"})
        cases = task.cases(paths.task_data(name), Ledger(name, "case"))
        with tempfile.TemporaryDirectory() as cache:
            total, read, shapes = cost(task, section, cases, checkpoint, Path(cache))
            again, _, _ = cost(task, section, cases, checkpoint, Path(cache))
        forward = sum(count * seconds(encoder, shape) for shape, count in shapes.items())
        passes = sum(count * shape[0] for shape, count in shapes.items()) / len(cases)
        ms = [1000 * part / len(cases) for part in (read, forward, total - read - forward, again)]
        print(
            f"| {name} | {task.kind.NAME} | {len(cases)} | {ms[0]:.1f} | {passes:.1f} | {ms[1]:.1f}"
            f" | {ms[2]:.1f} | {(total - read) / forward:.2f} | {ms[3]:.1f} |",
            flush=True,
        )


def cost(
    task: DownstreamTask, section: Finetune, cases: list[Case], checkpoint: Path, cache: Path
) -> tuple[float, float, Counter[Shape]]:
    """CPU seconds of `Kind.predict`, those of reading, and the batches that an encoder saw."""
    shapes: Counter[Shape] = Counter()

    def count(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, VolumeEncoder):
            shapes[tuple(inputs[0].shape)] += 1

    split = split_cases(
        cases,
        seed=SPLIT_SEED,
        validation_fraction=section.validation_fraction,
        test_fraction=section.test_fraction,
    )
    hook = register_module_forward_pre_hook(count)
    with tempfile.TemporaryDirectory() as folder, timed_readers() as spent, keeping(cache):
        selection = Selection(Path(folder) / paths.SELECTION, {"task": task.name})
        if section.mode == "zero_shot":
            selection.choose(benchmark=True)
        began = time.process_time()
        with selecting(selection):
            task.kind.predict(
                ClosedSplit(split, selection),
                checkpoint,
                Path(folder),
                section,
                Ledger(task.name, "case"),
                lambda step, metrics: None,
                task.name,
            )
        total = time.process_time() - began
    hook.remove()
    return total, sum(spent), shapes


@contextmanager
def timed_readers() -> Iterator[list[float]]:
    """CPU seconds of each call of a reader."""
    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments)
            finally:
                spent.append(time.process_time() - began)

        return call

    before = [(module, name, getattr(module, name)) for module, name in READERS]
    for module, name, function in before:
        setattr(module, name, timed(function))
    try:
        yield spent
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def seconds(encoder: torch.nn.Module, shape: Shape) -> float:
    """CPU seconds of the encoder on a batch of this shape, after one that does not count."""
    volumes = torch.rand(shape)
    repeats = max(1, MIN_TIMED // shape[0])
    with torch.inference_mode():
        encoder(volumes)
        began = time.process_time()
        for _ in range(repeats):
            encoder(volumes)
    return (time.process_time() - began) / repeats


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("usage: python benchmarks/evaluation.py CHECKPOINT [TASKS...]")
    main(Path(sys.argv[1]), sys.argv[2:])
