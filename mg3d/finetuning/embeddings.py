"""Volumes under an encoder that stays as it is: each is embedded once, for all that ask for it.

What is kept is the encoder's last map, from which features, tokens and the dual encoder's embedding
follow at no cost worth mentioning. A batch always has the same size (the last one repeats its last
volume), because a volume's map depends on the size of its batch in the last digits, and on nothing
else: who filled the store then changes no number.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mg3d.finetuning import store
from mg3d.finetuning.fitting import weights_sha256
from mg3d.finetuning.images import PackedCases
from mg3d.finetuning.task import Case

BATCH = 4


@torch.no_grad()
def embedded(
    encoder: Any, cases: Sequence[Case], volumes: PackedCases, read: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """``read(last map [1, 16C, z, y, x])[0]`` of each case by id, on the CPU.

    ``encoder`` is a `VolumeEncoder`; it is left in eval mode. ``read`` gets its map on the device
    of the encoder: `features_of`, `tokens_of`, or what a model makes of them.
    """
    encoder.eval()
    device = next(encoder.parameters()).device
    by_id = {case.case_id: case for case in cases}
    identity = encoder_sha256(encoder) if store.is_keeping() else ""

    def name_of(case_id: str) -> str | None:
        volume = volumes.names.get(case_id)
        if volume is None:
            return None
        return store.name_of(map=volume, encoder=identity, device=device.type)

    def make(ids: Sequence[str]) -> list[np.ndarray]:
        padded = [by_id[case_id] for case_id in ids]
        padded += padded[-1:] * (BATCH - len(ids))
        rows = encoder.last_map(volumes.batch(padded).to(device))[: len(ids)]
        return list(rows.cpu().numpy())

    found = {
        case_id: read(torch.from_numpy(last_map)[None].to(device))[0].cpu()
        for case_id, last_map in store.shared(list(by_id), name_of, make, BATCH)
    }
    return {case_id: found[case_id] for case_id in by_id}


def encoder_sha256(encoder: nn.Module) -> str:
    """Digest of what an encoder computes: its modules' classes and plain settings, its weights."""
    digest = hashlib.sha256(weights_sha256(encoder).encode())
    for name, module in encoder.named_modules():
        settings = {
            key: value
            for key, value in sorted(vars(module).items())
            if isinstance(value, int | float | str | tuple) and key != "training"
        }
        digest.update(f"{name} {type(module).__qualname__} {settings}\n".encode())
    return digest.hexdigest()
