"""Volumes and reports encoded once each, by the model's dual encoder, on the model's device."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mg3d.data.pairs import Collate, Pair
from mg3d.data.report_text import normalise, unwrap
from mg3d.data.sentences import split_sentences
from mg3d.finetuning.embeddings import embedded
from mg3d.finetuning.images import PackedCases
from mg3d.finetuning.task import Case

if TYPE_CHECKING:
    from mg3d.models.mg3d import MG3D

BATCH = 4


@dataclass
class Encoded:
    """L2-normalised ``image`` [E] by case id and ``text`` [E] by scan id; of the cases that are to
    meet, also ``tokens`` [N, E] and ``sentences`` [S, E]."""

    image: dict[str, np.ndarray] = field(default_factory=dict)
    text: dict[str, np.ndarray] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)
    sentences: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def encode(
    model: "MG3D",
    cases: Sequence[Case],
    volumes: PackedCases,
    collate: Collate,
    meeting: Collection[str] = (),
) -> Encoded:
    """Encode ``cases``, and keep what `MG3D.match` reads of those whose ids are in ``meeting``."""
    from mg3d.models.vision import tokens_of

    def read(last_map: Tensor) -> Tensor:
        return model.encode_tokens(tokens_of(last_map))

    tokens_of_case = embedded(model.vision_encoder, cases, volumes, read)
    nothing = torch.zeros(1, 1, 1, 1)  # the volumes are encoded already
    device, encoded = next(model.parameters()).device, Encoded()
    for start in range(0, len(cases), BATCH):
        chosen = cases[start : start + BATCH]
        batch = collate([Pair(case.case_id, nothing, sentences(case.text)) for case in chosen])
        batch = batch.to(device)
        tokens = torch.stack([tokens_of_case[case.case_id] for case in chosen]).to(device)
        means, mask = model.encode_sentences(
            batch.input_ids,
            batch.attention_mask,
            batch.sentence_index,
            batch.sentence_mask,
        )
        image = model.embed_image(tokens).cpu().numpy()
        text = model.embed_sentences(means, mask).cpu().numpy()
        for row, case in enumerate(chosen):
            encoded.image[case.case_id] = image[row]
            encoded.text.setdefault(case.scan_id, text[row])
            if case.case_id in meeting:
                encoded.tokens[case.case_id] = tokens[row].clone()
                encoded.sentences[case.case_id] = means[row, mask[row]].clone()
    return encoded


def sentences(text: str) -> list[str]:
    """Cut as the reports of pre-training are: lines joined where a line's width broke them."""
    text = unwrap(normalise(text))
    return [text[start:end] for start, end in split_sentences(text)] or [text]
