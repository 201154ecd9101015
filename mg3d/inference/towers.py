"""Volumes for the towers, and the encoder as a task left it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mg3d.data.resample import resample_to_contract
from mg3d.data.volumes import apply_window
from mg3d.finetuning.fitted import Fitted
from mg3d.inference.answer import Answer
from mg3d.inference.study import Study
from mg3d.params import VolumeContract
from mg3d.training.checkpoint import LoadedModel, load_encoder

if TYPE_CHECKING:
    from torch import Tensor

    from mg3d.models.vision import VolumeEncoder

#: What answers for a study, and the contract of its weights.
Built = tuple[Callable[[Study], Answer], VolumeContract]


def windowed(study: Study, contract: VolumeContract) -> "Tensor":
    """The study under the contract: float32 [1, 1, D, H, W] in [0, 1]."""
    hu = resample_to_contract(study.volume, study.affine, contract)
    return torch.from_numpy(apply_window(hu, contract.window_hu)[None, None])


def task_encoder(folder: Path, fitted: Fitted) -> tuple["VolumeEncoder", VolumeContract]:
    """The folder's encoder, with the weights that the task trained if it did."""
    encoder, _, contract = load_encoder(folder)
    if fitted.encoder:
        encoder.load_state_dict(dict(fitted.encoder))
    return encoder.eval(), contract


def collate_of(loaded: LoadedModel) -> Any:
    """What tokenises texts for the model."""
    from mg3d.data.pairs import Collate
    from mg3d.models.text import load_tokenizer

    text = loaded.model_params.text
    return Collate(load_tokenizer(text.name_or_folder), text.max_tokens)
