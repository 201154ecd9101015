"""A registered model's folder: written from a checkpoint and what a task fitted, and read again.

``model.json`` says what it is and under which contract; ``weights.safetensors`` is the encoder, or
both towers where a task asks them; ``fitted.safetensors`` what the task added.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mg3d import paths
from mg3d.finetuning.fitted import Fitted, read_fitted
from mg3d.inference.answer import Answer
from mg3d.inference.study import Admission, Study
from mg3d.params import SegmentationTask, VolumeContract
from mg3d.training.checkpoint import export_encoder

MODEL_JSON = "model.json"
BOTH_TOWERS = ("retrieval",)


@dataclass(frozen=True)
class TaskModel:
    """A downstream task's model, ready to be asked."""

    task: str
    contract: VolumeContract
    admission: Admission
    answer: Callable[[Study], Answer]


def write_task_model(
    checkpoint: Path, cell: Path, out: Path, min_lung_mm: float | None
) -> Mapping[str, Any]:
    """Write the folder ``out`` of the model of one evaluated ``cell``; returns its model.json.

    Raises ValueError if the cell kept nothing fitted, or fitted under another contract.
    """
    file = cell / paths.FITTED
    if not file.exists():
        raise ValueError(f"{cell} has no {paths.FITTED}: run `mg3d evaluate` again")
    fitted = read_fitted(file)
    out.mkdir(parents=True, exist_ok=True)
    if asks_both_towers(fitted):
        shutil.copyfile(checkpoint / paths.WEIGHTS, out / paths.WEIGHTS)
    else:
        export_encoder(checkpoint, out)
    shutil.copyfile(file, out / paths.FITTED)
    is_ct = not isinstance(fitted.params, SegmentationTask) or fitted.params.window_hu is not None
    about = {
        "task": fitted.task,
        "kind": fitted.kind,
        "contract": fitted.contract_digest,
        "admission": asdict(Admission(is_ct, min_lung_mm if is_ct else None)),
    }
    (out / MODEL_JSON).write_text(json.dumps(about, indent=2) + "\n")
    return about


def load_task_model(folder: Path) -> TaskModel:
    """Raises ValueError if weights and head are of different contracts, or a file is damaged."""
    about = json.loads((folder / MODEL_JSON).read_text())
    fitted = read_fitted(folder / paths.FITTED)
    from mg3d.inference import labels, masks, places, reports, similar

    builders = {
        "classification": labels.prompted if asks_both_towers(fitted) else labels.probed,
        "multiclass": labels.probed,
        "candidates": places.candidates,
        "segmentation": masks.segmented,
        "report_generation": reports.written,
        "retrieval": similar.cases,
    }
    if fitted.kind not in builders:
        raise ValueError(
            f"{fitted.task} is of the kind {fitted.kind}, and nothing answers for it: known are "
            f"{', '.join(builders)}"
        )
    build = builders[fitted.kind]
    answer, contract = build(folder, fitted)
    if contract.digest() != fitted.contract_digest or contract.digest() != about["contract"]:
        raise ValueError(
            f"the weights are of contract {contract.digest()}, what was fitted on them of "
            f"{fitted.contract_digest} and the model says {about['contract']}: register it again"
        )
    return TaskModel(fitted.task, contract, Admission(**about["admission"]), answer)


def asks_both_towers(fitted: Fitted) -> bool:
    """Whether the text side takes part, beside the image encoder."""
    return fitted.kind in BOTH_TOWERS or fitted.params.mode in ("zero_shot", "prompt_tuned")
