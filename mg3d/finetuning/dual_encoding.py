"""Volumes and reports encoded once each, by the model's dual encoder."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mg3d.data.pairs import Collate, Pair
from mg3d.data.report_text import normalise, unwrap
from mg3d.data.sentences import split_sentences
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
    encoded = Encoded()
    for start in range(0, len(cases), BATCH):
        chosen = cases[start : start + BATCH]
        batch = collate(
            [
                Pair(case.case_id, volume, sentences(case.text))
                for case, volume in zip(chosen, volumes.batch(chosen), strict=True)
            ]
        )
        tokens, means, mask = model.encode_pair(
            batch.volume,
            batch.input_ids,
            batch.attention_mask,
            batch.sentence_index,
            batch.sentence_mask,
        )
        image, text = model.embed_image(tokens).numpy(), model.embed_sentences(means, mask).numpy()
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
