"""What an evaluation fitted, kept beside its predictions: one safetensors file, no pickle.

Its header says what the tensors are: task, kind, mode, params, contract, and the facts of the kind
(labels and thresholds, classes, tokenizer, gallery). A frozen encoder is not in it, since the
checkpoint has it; one that learnt is, under ``encoder.``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mg3d import paths
from mg3d.params import Downstream, Finetune

ENCODER = "encoder."
TRAINS_ENCODER = ("finetune", "scratch")


@dataclass(frozen=True)
class Fitted:
    """The file's tensors and header. ``params`` is the section the evaluation ran with."""

    task: str
    kind: str
    params: Finetune
    contract_digest: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def head(self) -> dict[str, Tensor]:
        """Tensors beside the encoder's."""
        return {k: t for k, t in self.tensors.items() if not k.startswith(ENCODER)}

    @property
    def encoder(self) -> dict[str, Tensor]:
        """Tensors of an encoder that learnt, under its own names; empty if it was frozen."""
        return {
            k.removeprefix(ENCODER): t for k, t in self.tensors.items() if k.startswith(ENCODER)
        }


def keep_fitted(
    predictions: Path,
    module: nn.Module | None,
    *,
    task: str,
    kind: str,
    params: Finetune,
    contract_digest: str,
    tensors: Mapping[str, Tensor] | None = None,
    **facts: Any,
) -> None:
    """Write ``fitted.safetensors`` beside the folder ``predictions``.

    The state of ``module`` and ``tensors`` are kept (a zero-shot task has no module); ``facts`` are
    JSON values.
    """
    state = module.state_dict() if module is not None else {}
    if params.mode not in TRAINS_ENCODER:
        state = {k: t for k, t in state.items() if not k.startswith(ENCODER)}
    # clones: safetensors refuses tensors that share memory, as tied embeddings do
    kept = {
        k: t.detach().cpu().contiguous().clone() for k, t in {**state, **(tensors or {})}.items()
    }
    header = {
        "task": task,
        "kind": kind,
        "params": params.model_dump_json(),
        "contract_digest": contract_digest,
        "facts": json.dumps(facts),
    }
    with paths.atomic_write(predictions.parent / paths.FITTED) as temporary:
        save_file(kept, temporary, header)


def read_fitted(file: Path) -> Fitted:
    """Raises ValueError if the file is not there, is damaged, or is of an unknown task."""
    try:
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {error}; run `mg3d evaluate` again") from None
    if "facts" not in header:
        raise ValueError(f"{file} does not say what it holds: not written by `mg3d evaluate`")
    section = type(Downstream().task(header["task"]))
    return Fitted(
        header["task"],
        header["kind"],
        section.model_validate_json(header["params"]),
        header["contract_digest"],
        json.loads(header["facts"]),
        tensors,
    )
