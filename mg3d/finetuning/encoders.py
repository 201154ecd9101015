"""The image encoder a task starts from: pre-trained, or random of the same architecture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from mg3d import paths
from mg3d.device import best
from mg3d.params import Finetune, Model, VolumeContract
from mg3d.training.checkpoint import load_encoder

if TYPE_CHECKING:
    from mg3d.models.vision import VolumeEncoder


def starting_encoder(
    checkpoint: Path, params: Finetune
) -> tuple["VolumeEncoder", VolumeContract, dict[str, Any]]:
    """Encoder by mode (``scratch``: random), the contract it needs, and provenance for the result.

    The encoder is on the best device. Provenance: ``contract_digest`` and ``encoder_coverage``
    (None from scratch: nothing is loaded).
    """
    encoder, coverage, contract = load_encoder(checkpoint)
    if params.mode == "scratch":
        encoder = random_encoder(checkpoint, params.seed)
    used = coverage.as_json() if params.mode != "scratch" else None
    return (
        encoder.to(best()),
        contract,
        {"contract_digest": contract.digest(), "encoder_coverage": used},
    )


def about_random_encoder(mode: str) -> str:
    """What the null ``random_encoder`` is to a cell's mode: a note of its result."""
    if mode in ("scratch", "finetune"):
        return (
            "random_encoder is a probe on an untrained encoder that stays frozen, not the "
            f"procedure of mode {mode}; finetune is to be compared with mode scratch, which "
            "trains alike: `mg3d table` pairs them by patient"
        )
    return f"random_encoder is the same procedure, mode {mode}, on an untrained encoder"


def random_encoder(checkpoint: Path, seed: int) -> "VolumeEncoder":
    """The checkpoint's architecture with fresh weights: the null baseline of pre-training."""
    from mg3d.models.vision import vision_encoder

    with safe_open(checkpoint / paths.WEIGHTS, "pt") as file:
        model = Model.model_validate_json(file.metadata()["model"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return vision_encoder(model.vision).eval().to(best())
