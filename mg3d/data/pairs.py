"""Pairs of volume and sentences for training, and their collation into a batch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mg3d import paths
from mg3d.data.embeddings import SentenceMeans
from mg3d.data.manifest import COLUMNS, SPLITS, read_table, split_hash
from mg3d.data.tokens import tokenize_report
from mg3d.data.volumes import apply_window
from mg3d.params import VolumeContract


@dataclass(frozen=True)
class Pair:
    """A study: ``volume`` [1, D, H, W] float32 in [0, 1], and its report's sentences in order."""

    study_id: str
    volume: Tensor
    sentences: list[str]
    sentence_means: Tensor | None = None
    """[S, E] float32 of the sentences that have tokens; None: the text encoder runs in training"""


class Pairs(Dataset[Pair]):
    """Pairs of one split under ``prepared``, ordered by study id; with ``means``, of sentences too.

    Raises ValueError if the volumes were packed under another contract, if the manifest and the
    recorded splits disagree, if the split is empty, or if ``means`` are of other sentences.
    """

    def __init__(
        self,
        prepared: Path,
        split: str,
        contract: VolumeContract,
        means: SentenceMeans | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}: one of {SPLITS}")
        folder = paths.stage_folder("build_manifest", prepared)
        manifest = read_table(folder / paths.MANIFEST, COLUMNS, "study_id")
        packed_under = set(manifest["contract_digest"])
        if packed_under - {contract.digest()}:
            raise ValueError(
                f"volumes were packed under contract {', '.join(sorted(packed_under))}, not "
                f"{contract.digest()}: run `dvc repro` after changing `contract` in params.yaml"
            )
        _check_splits(folder / paths.SPLITS, manifest)
        rows = manifest[manifest["split"] == split]
        if rows.empty:
            raise ValueError(
                f"the {split} split is empty ({len(manifest)} studies in all): add patients, or "
                f"change build_manifest.seed or its fractions in params.yaml"
            )
        table = paths.stage_folder("segment_sentences", prepared) / paths.SENTENCE_TABLE
        sentences = read_table(table, ("report_id", "index", "text"), "sentence_id")
        texts = sentences.sort_values("index").groupby("report_id")["text"].agg(list)
        self.contract = contract
        self.study_ids: list[str] = rows["study_id"].tolist()
        self.patient_ids: list[str] = rows["patient_id"].tolist()
        self._volumes = [prepared / volume for volume in rows["volume"]]
        self._report_ids: list[str] = rows["report_id"].tolist()
        self._sentences: list[list[str]] = [texts[report] for report in self._report_ids]
        self._means = means
        if means is not None:
            means.require(dict(zip(self._report_ids, self._sentences, strict=True)))

    def __len__(self) -> int:
        return len(self.study_ids)

    def __getitem__(self, index: int) -> Pair:
        hu = np.load(self._volumes[index], allow_pickle=False)  # whole: faster than a memory map
        if hu.dtype != np.int16 or hu.shape != self.contract.shape_voxels:
            raise ValueError(
                f"volume of {self.study_ids[index]} is {hu.dtype} {hu.shape}, the contract says "
                f"int16 {self.contract.shape_voxels}: run `dvc repro --force pack_volumes`"
            )
        volume = torch.from_numpy(apply_window(hu, self.contract.window_hu))
        means = None
        if self._means is not None:
            means = torch.from_numpy(self._means.of(self._report_ids[index]))
        return Pair(self.study_ids[index], volume[None], self._sentences[index], means)


def _check_splits(path: Path, manifest: Any) -> None:
    """The manifest's splits are those recorded and hashed, and no patient is in two of them."""
    if not path.is_file():
        raise ValueError(f"no {path}: run `dvc repro`")
    recorded = json.loads(path.read_text())
    by_split = manifest.groupby("split")["study_id"].agg(list).to_dict()
    actual = {split: by_split.get(split, []) for split in SPLITS}
    hashes = {recorded["hash"], split_hash(recorded), split_hash(actual)}
    if len(hashes) > 1 or set(by_split) - set(SPLITS):
        raise ValueError(f"{path} does not match the manifest: run `dvc repro --force`")
    if (manifest.groupby("patient_id")["split"].nunique() > 1).any():
        raise ValueError(f"a patient is in two splits of {path}: run `dvc repro --force`")


@dataclass(frozen=True)
class Batch:
    """B pairs padded to L tokens and S sentences."""

    study_ids: list[str]
    volume: Tensor  # [B, 1, D, H, W] float32 in [0, 1]
    input_ids: Tensor  # [B, L] long
    attention_mask: Tensor  # [B, L] long, 0 for padding
    sentence_index: Tensor  # [B, L] long: -1 for CLS, SEP, PAD, else 0-based sentence
    word_index: Tensor  # [B, L] long: -1 for CLS, SEP, PAD, else 0-based whole word
    sentence_mask: Tensor  # [B, S] bool: the sentence has a token in input_ids
    sentence_means: Tensor | None = None  # [B, S, E] float32, 0 where not sentence_mask
    num_truncated: int = 0  # tokens cut off, over the batch

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its tensors on ``device``."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


class Collate:
    """Pairs -> Batch, with the tokenizer given."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    def __call__(self, pairs: Sequence[Pair]) -> Batch:
        """Pads with [PAD], sentence and word index -1."""
        reports = [
            tokenize_report(pair.sentences, self.tokenizer, self.max_tokens) for pair in pairs
        ]
        input_ids = _pad([report.input_ids for report in reports], self.tokenizer.pad_token_id)
        sentence_index = _pad([report.sentence_index for report in reports], -1)
        sentences = torch.arange(max(1, int(sentence_index.max()) + 1))
        return Batch(
            study_ids=[pair.study_id for pair in pairs],
            volume=torch.stack([pair.volume for pair in pairs]),
            input_ids=input_ids,
            attention_mask=_pad([[1] * len(report.input_ids) for report in reports], 0),
            sentence_index=sentence_index,
            word_index=_pad([report.word_index for report in reports], -1),
            sentence_mask=(sentence_index[:, :, None] == sentences).any(dim=1),
            sentence_means=_pad_means(pairs, len(sentences)),
            num_truncated=sum(report.num_truncated for report in reports),
        )


def _pad(rows: Sequence[list[int]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=value
    )


def _pad_means(pairs: Sequence[Pair], num_sentences: int) -> Tensor | None:
    """[B, S, E], or None unless all pairs have sentence means."""
    means = [pair.sentence_means for pair in pairs if pair.sentence_means is not None]
    if len(means) < len(pairs):
        return None
    padded = means[0].new_zeros(len(pairs), num_sentences, means[0].shape[1])
    for row, of_pair in zip(padded, means, strict=True):
        row[: len(of_pair)] = of_pair
    return padded
