"""From studies to the batches of one rank, masked at the moment of use."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Subset

from mg3d.objectives.mim import mask_blocks
from mg3d.objectives.mlm import IGNORED, mask_words
from mg3d.params import Objective, Pretrain
from mg3d.training.distributed import rank, world_size
from mg3d.training.order import generator, global_batches

if TYPE_CHECKING:  # this imports monai, which takes seconds
    from mg3d.data.pairs import Batch, Collate, Pair
    from mg3d.models.mg3d import Inputs

Key = tuple[int | str, ...]


class Feed:
    """Batches of this rank, masked when they are used: no mask is ever kept."""

    def __init__(
        self,
        collate: "Collate",
        objective: Objective,
        params: Pretrain,
        mask_token_id: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self.collate = collate
        self.objective = objective
        self.params = params
        self.mask_token_id = mask_token_id
        self.vocab_size = vocab_size
        self.device = device

    def training(
        self, pairs: "Subset[Pair]", start_step: int = 0
    ) -> Iterator[tuple[Sequence[str], "Inputs"]]:
        """Endless (study ids, inputs): this rank's slice of each global batch."""
        seed, batch_size = self.params.seed, self.params.batch_size
        places = np.array_split(np.arange(batch_size), world_size())[rank()].tolist()
        order = global_batches(seed, len(pairs), batch_size, start_step)
        for step, indices in enumerate(order, start_step + 1):
            batch = self.collate([pairs[indices[place]] for place in places])
            yield batch.study_ids, self._inputs(batch, [(step, place) for place in places])

    def validation(self, pairs: "Subset[Pair]") -> Iterator["Inputs"]:
        """This rank's share of all studies, each once, always with the same masks."""
        places = np.array_split(np.arange(len(pairs)), world_size())[rank()].tolist()
        size = max(1, self.params.batch_size // world_size() // self.params.accumulate_steps)
        for start in range(0, len(places), size):
            yield self.fixed(pairs, places[start : start + size])

    def fixed(self, pairs: "Subset[Pair]", places: Sequence[int]) -> "Inputs":
        """The studies at ``places``, with the masks of validation."""
        batch = self.collate([pairs[place] for place in places])
        return self._inputs(batch, [("validation", place) for place in places])

    def _inputs(self, batch: "Batch", keys: Sequence[Key]) -> "Inputs":
        inputs = corrupt(
            batch, keys, self.params.seed, self.objective, self.mask_token_id, self.vocab_size
        )
        columns = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
        given = {name: column for name, column in columns.items() if column is not None}
        return replace(inputs, **{name: column.to(self.device) for name, column in given.items()})


def corrupt(
    batch: "Batch",
    keys: Sequence[Key],
    seed: int,
    objective: Objective,
    mask_token_id: int,
    vocab_size: int,
) -> "Inputs":
    """Mask words and blocks of each sample by generators of its own key (step, place).

    A sample's masks therefore do not depend on what else is in the batch, on its padding, or on
    the number of ranks.
    """
    from mg3d.models.mg3d import Inputs

    masked_ids = batch.input_ids.clone()
    labels = torch.full_like(batch.input_ids, IGNORED)
    volumes, masks = [], []
    for row, key in enumerate(keys):
        length = int(batch.attention_mask[row].sum())
        masked_ids[row : row + 1, :length], labels[row : row + 1, :length] = mask_words(
            batch.input_ids[row : row + 1, :length],
            batch.word_index[row : row + 1, :length],
            objective.mlm_masked_fraction,
            mask_token_id,
            vocab_size,
            generator(seed, "words", *key),
        )
        volume, mask = mask_blocks(
            batch.volume[row : row + 1],
            objective.mim_masked_fraction,
            objective.mim_block_voxels,
            generator(seed, "blocks", *key),
        )
        volumes.append(volume)
        masks.append(mask)
    return Inputs(
        volume=batch.volume,
        masked_volume=torch.cat(volumes),
        voxel_mask=torch.cat(masks),
        input_ids=batch.input_ids,
        masked_ids=masked_ids,
        mlm_labels=labels,
        attention_mask=batch.attention_mask,
        sentence_index=batch.sentence_index,
        sentence_mask=batch.sentence_mask,
        sentence_means=batch.sentence_means,
    )
