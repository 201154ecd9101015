"""Labels as prompts: what the model's own dual encoder says to "{finding}." and "not {finding}.".

``zero_shot`` uses no label: the probability is the softmax of the two similarities at the
temperature of pre-training. ``prompt_tuned`` trains a linear map on either side, both starting as
the identity, and a bias per label, with the training labels; the towers stay frozen.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg3d.device import best
from mg3d.finetuning.embeddings import embedded
from mg3d.finetuning.fitting import fit_head
from mg3d.finetuning.images import PackedCases, packed_cases
from mg3d.finetuning.probe import Predicted
from mg3d.finetuning.task import Case, OnMetrics, Split
from mg3d.ledger import Ledger
from mg3d.params import Finetune

if TYPE_CHECKING:
    from mg3d.models.mg3d import MG3D

PROMPTS = ("{}.", "not {}.")
Loss = Callable[[Tensor, Tensor], Tensor]


class Prompted(nn.Module):
    """Image embeddings -> logits of labels, by their prompts ``text`` [K, 2, E] (yes, no)."""

    text: Tensor

    def __init__(self, text: Tensor, temperature: float, loss: Loss) -> None:
        super().__init__()
        width = text.shape[-1]
        self.image_map = nn.Linear(width, width, bias=False)
        self.text_map = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(len(text)))
        nn.init.eye_(self.image_map.weight)
        nn.init.eye_(self.text_map.weight)
        self.register_buffer("text", text)
        self.temperature, self.loss = temperature, loss

    def logits(self, image: Tensor) -> Tensor:
        """[B, E] -> [B, K]: (cosine to yes - cosine to no) / temperature + bias.

        Its sigmoid is the softmax over the pair of prompts.
        """
        image = F.normalize(self.image_map(image.to(self.bias.device)), dim=-1)
        yes, no = F.normalize(self.text_map(self.text), dim=-1).unbind(1)
        return image @ (yes - no).T / self.temperature + self.bias

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """(image [B, E], labels [B, K]) -> {"total": loss}."""
        image, labels = batch
        return {"total": self.loss(self.logits(image), labels)}


def prompted(
    split: Split,
    checkpoint: Path,
    names: Sequence[str],
    labels: Callable[[Sequence[Case]], Tensor],
    loss: Loss,
    params: Finetune,
    ledger: Ledger,
    on_metrics: OnMetrics,
    prefix: str,
    keep: Callable[[nn.Module], None],
) -> tuple[list[Predicted], dict[str, Any]]:
    """What gives the probabilities of a part of the split, by the model and by an untrained one,
    and provenance. ``keep`` is given the model's head.

    Raises ValueError for a checkpoint without a dual encoder.
    """
    from mg3d.data.pairs import Collate
    from mg3d.models.build import build
    from mg3d.models.text import load_tokenizer
    from mg3d.training.checkpoint import load_model

    loaded = load_model(checkpoint)
    collate = Collate(
        load_tokenizer(loaded.model_params.text.name_or_folder), loaded.model_params.text.max_tokens
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed + 1)
        untrained = build(loaded.model_params, loaded.objective_params).eval()
    temperature = loaded.objective_params.temperature
    found: list[Predicted] = []
    with packed_cases(split, loaded.contract, ledger) as volumes:
        for model, report, name in (
            (loaded.model, on_metrics, prefix),
            (untrained, lambda step, metrics: None, f"{prefix}/random_encoder"),
        ):
            model.to(best())
            torch.manual_seed(params.seed)
            head = Prompted(embed_prompts(model, names, collate), temperature, loss).eval()
            known = [case for cases in split.values() for case in cases]
            image = _embed(model, known, volumes)

            def rows(cases: Sequence[Case], image: dict[str, Tensor] = image) -> Tensor:
                return torch.stack([image[case.case_id] for case in cases])

            if params.mode == "prompt_tuned":
                fit_head(
                    head,
                    split["train"],
                    split["validation"],
                    lambda cases, rows=rows: (rows(cases), labels(cases)),  # type: ignore[misc]
                    params,
                    report,
                    name,
                )
            if name == prefix:
                keep(head)
            found.append(partial(_probabilities, head, rows, split))
    return found, {"contract_digest": loaded.contract.digest(), "encoder_coverage": None}


@torch.inference_mode()
def _probabilities(
    head: Prompted, rows: Callable[[Sequence[Case]], Tensor], split: Split, part: str
) -> np.ndarray:
    cases = split[part]
    if not cases:
        return np.zeros((0, len(head.bias)), np.float32)
    return head.logits(rows(cases)).sigmoid().cpu().numpy()


@torch.no_grad()
def embed_prompts(model: "MG3D", names: Sequence[str], collate: Any) -> Tensor:
    """L2-normalised embeddings [K, 2, E] of each label's two prompts.

    Raises ValueError if the model has no dual encoder.
    """
    from mg3d.data.pairs import Pair

    nothing = torch.zeros(1, 1, 1, 1)
    texts = [prompt.format(name) for name in names for prompt in PROMPTS]
    batch = collate([Pair(text, nothing, [text]) for text in texts])
    batch = batch.to(next(model.parameters()).device)
    embedded = model.encode_text(
        batch.input_ids, batch.attention_mask, batch.sentence_index, batch.sentence_mask
    )
    return embedded.reshape(len(names), len(PROMPTS), -1)


def _embed(model: "MG3D", cases: Sequence[Case], volumes: PackedCases) -> dict[str, Tensor]:
    """L2-normalised image embeddings [E] by case id, each volume once."""
    from mg3d.models.vision import tokens_of

    def read(last_map: Tensor) -> Tensor:
        return model.embed_image(model.encode_tokens(tokens_of(last_map)))

    return embedded(model.vision_encoder, cases, volumes, read)
