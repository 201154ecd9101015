"""Both towers: embeddings of studies and texts in one space, and findings without training."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mg3d import paths
from mg3d.data.pairs import Pair
from mg3d.finetuning.dual_encoding import sentences
from mg3d.finetuning.prompting import Prompted, embed_prompts
from mg3d.inference.answer import Answer, Finding
from mg3d.inference.model import MODEL_JSON
from mg3d.inference.study import Admission, Study
from mg3d.inference.towers import collate_of, windowed
from mg3d.params import VolumeContract
from mg3d.training.checkpoint import LoadedModel, load_model


@dataclass(frozen=True)
class DualEncoder:
    """A pre-trained model with its dual encoder, ready to be asked."""

    loaded: LoadedModel
    collate: Any
    admission: Admission

    @property
    def contract(self) -> VolumeContract:
        """That volumes come under."""
        return self.loaded.contract

    @torch.inference_mode()
    def embed_image(self, study: Study) -> np.ndarray:
        """L2-normalised float32 [E]."""
        return self.loaded.model.encode_image(windowed(study, self.contract))[0].numpy()

    @torch.inference_mode()
    def embed_text(self, text: str) -> np.ndarray:
        """L2-normalised float32 [E] of a text of one or more sentences."""
        batch = self.collate([Pair("", torch.zeros(1, 1, 1, 1), sentences(text))])
        return self.loaded.model.encode_text(
            batch.input_ids, batch.attention_mask, batch.sentence_index, batch.sentence_mask
        )[0].numpy()

    @torch.inference_mode()
    def findings(self, study: Study, names: Sequence[str]) -> Answer:
        """Zero-shot probability of each name, by its two prompts."""
        text = embed_prompts(self.loaded.model, names, self.collate)
        temperature = self.loaded.objective_params.temperature
        head = Prompted(text, temperature, torch.nn.functional.mse_loss)
        image = self.loaded.model.encode_image(windowed(study, self.contract))
        probability = head.logits(image)[0].sigmoid().tolist()
        return Answer(
            study.study_id,
            findings=tuple(Finding(n, p) for n, p in zip(names, probability, strict=True)),
        )


def write_dual_encoder(checkpoint: Path, out: Path, min_lung_mm: float | None) -> dict[str, Any]:
    """Write the folder ``out`` of the model `mg3d`; returns its model.json.

    Raises ValueError if the checkpoint has no dual encoder.
    """
    loaded = load_model(checkpoint)
    if not loaded.objective_params.itc_weight:
        raise ValueError(
            f"{checkpoint} has no dual encoder: pre-train with objective.itc_weight above 0"
        )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint / paths.WEIGHTS, out / paths.WEIGHTS)
    about = {
        "kind": "dual_encoder",
        "contract": loaded.contract.digest(),
        "admission": asdict(Admission(True, min_lung_mm)),
    }
    (out / MODEL_JSON).write_text(json.dumps(about, indent=2) + "\n")
    return about


def load_dual_encoder(folder: Path) -> DualEncoder:
    """Raises ValueError if the weights are not of the contract that model.json names."""
    about = json.loads((folder / MODEL_JSON).read_text())
    loaded = load_model(folder)
    if loaded.contract.digest() != about["contract"]:
        raise ValueError(
            f"the weights are of contract {loaded.contract.digest()}, the model says "
            f"{about['contract']}: register it again"
        )
    return DualEncoder(loaded, collate_of(loaded), Admission(**about["admission"]))
