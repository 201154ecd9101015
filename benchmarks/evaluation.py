"""What does a frozen evaluation cost per case, against the bare forward passes that it needs?

``python benchmarks/evaluation.py CHECKPOINT [TASKS...]`` on the data under ``data/downstream``,
with the params of ``params.yaml``, ``frozen`` (or ``zero_shot`` where that is the task's mode).
Columns, in CPU milliseconds per case (a busy machine does not count):

- *read*: the image, from its official file to the volume contract
- *forward*: the encoder on a volume of the contract, nothing else, times ``passes``: a task that
  has the null baseline of a random encoder embeds each volume twice
- *rest*: everything else of `Kind.predict`: head, null baselines, prediction files
- *ratio*: (forward + rest) / forward; 1.2 is the target for tasks whose head is a linear map

Segmentation cuts crops and windows instead of volumes of the contract, so it has no such ratio and
is left out.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from mg3d import paths
from mg3d.downstream import DOWNSTREAM
from mg3d.finetuning.images import packed_cases
from mg3d.finetuning.selection import Selection, selecting
from mg3d.finetuning.splits import SPLIT_SEED, split_cases
from mg3d.ledger import Ledger
from mg3d.params import load_params
from mg3d.training.checkpoint import load_encoder

BATCH = 4
NUM_TIMED = 16
PASSES = {"classification": 2, "retrieval": 2, "report_generation": 1}


def main(checkpoint: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    params = load_params()
    encoder, _, contract = load_encoder(checkpoint)
    forward_ms = forward(encoder, contract.shape_voxels)
    print("| task | cases | read ms | passes | forward ms | rest ms | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in names or list(DOWNSTREAM):
        task = DOWNSTREAM[name]
        section = params.downstream.task(name)
        if section.mode != "zero_shot":
            section = section.model_copy(update={"mode": "frozen"})
        if task.kind.NAME == "segmentation":
            continue
        passes = PASSES[task.kind.NAME]
        cases = task.cases(paths.task_data(name), Ledger(name, "case"))
        fractions = {
            "validation_fraction": section.validation_fraction,
            "test_fraction": section.test_fraction,
        }
        began = time.process_time()
        split = split_cases(cases, seed=SPLIT_SEED, **fractions)
        with packed_cases(split, contract, Ledger(name, "case")):
            read_ms = 1000 * (time.process_time() - began) / len(cases)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            began = time.process_time()
            with selecting(Selection(out / paths.SELECTION, {"task": name})):
                task.kind.predict(
                    split_cases(cases, seed=SPLIT_SEED, **fractions),
                    checkpoint,
                    out,
                    section,
                    Ledger(name, "case"),
                    lambda step, metrics: None,
                    name,
                )
            total_ms = 1000 * (time.process_time() - began) / len(cases)
        needed_ms = passes * forward_ms
        print(
            f"| {name} | {len(cases)} | {read_ms:.1f} | {passes} | {needed_ms:.1f} "
            f"| {total_ms - read_ms - needed_ms:.1f} | {(total_ms - read_ms) / needed_ms:.2f} |",
            flush=True,
        )


def forward(encoder: torch.nn.Module, shape: tuple[int, int, int]) -> float:
    """CPU milliseconds of the encoder per volume, in batches, after one that does not count."""
    volumes = torch.rand(BATCH, 1, *shape)
    with torch.inference_mode():
        encoder.features(volumes)  # type: ignore[operator]
        began = time.process_time()
        for _ in range(NUM_TIMED // BATCH):
            encoder.features(volumes)  # type: ignore[operator]
    return 1000 * (time.process_time() - began) / NUM_TIMED


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("usage: python benchmarks/evaluation.py CHECKPOINT [TASKS...]")
    main(Path(sys.argv[1]), sys.argv[2:])
