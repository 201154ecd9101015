"""Published weights become a checkpoint folder, once: `mg3d import_weights`.

This is the only place where a pickle is opened: by ``torch.load(weights_only=True)``, which builds
tensors and plain containers and refuses everything that could run code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mg3d import paths
from mg3d.fingerprint import Fingerprint, file_sha256
from mg3d.params import Model, Objective, VolumeContract
from mg3d.training.checkpoint import latest, save, training_state
from mg3d.training.published import PublishedEncoder, load_published, published_encoder


def import_weights(
    file: Path, out: Path, contract: VolumeContract, model: Model, objective: Objective
) -> tuple[Path, PublishedEncoder]:
    """Write ``out/checkpoints/step-000000`` with the file's vision encoder and nothing else.

    ``contract`` says how volumes are made for it, which a published file does not know. Returns the
    checkpoint, and the encoder with its coverage. Raises ValueError for a file that is no published
    encoder (see `load_published`), is damaged, or holds more than weights, and for a folder with
    other weights.
    """
    encoder = _encoder(file)
    fingerprint = Fingerprint({"imported_sha256": file_sha256(file)})
    checkpoints = out / paths.CHECKPOINTS
    existing = latest(checkpoints)
    if existing is not None and training_state(existing).fingerprint != fingerprint:
        raise ValueError(f"{existing} holds other weights than {file}: name another --out")
    module = nn.Module()
    module.vision_encoder = encoder.encoder
    checkpoint = save(
        checkpoints,
        num_kept=1,
        step=0,
        model=module,
        optimizer=torch.optim.SGD(module.parameters()),  # without state: nothing was trained
        contract=contract,
        model_params=model.model_copy(update={"vision": encoder.params}),
        objective_params=objective,
        fingerprint=fingerprint,
        rng=torch.zeros(1, 0, dtype=torch.uint8),
        position={
            "imported": file.name,
            "coverage": encoder.coverage.as_json(),
            "beside": list(encoder.beside),
        },
    )
    return checkpoint, encoder


def _encoder(file: Path) -> PublishedEncoder:
    if file.suffix == ".safetensors":
        return load_published(file)
    if not file.is_file():
        raise ValueError(f"no file {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what is wrong with a pickle has many types
        reason = (str(error).splitlines() or ["empty"])[0]
        raise ValueError(
            f"{file} is damaged, or holds more than weights, which could run code "
            f"({type(error).__name__}: {reason}): fetch it again, or ask for a plain state dict"
        ) from None
    return published_encoder(_flat(content), file)


def _flat(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of nested dicts under dotted names; other values are left out."""
    found: dict[str, Tensor] = {}
    if isinstance(content, Mapping):
        for name, value in content.items():
            found |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(content, Tensor):
        found[prefix] = content
    return found
