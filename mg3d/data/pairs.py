"""Pairs of volume and sentences for training, and their collation into a batch.

The tokenizer is passed in. A report is tokenised once, as its sentences joined by one space; tokens
find their sentence and word by character offsets, so nothing drifts (spec/model 1.2).
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mg3d import paths
from mg3d.data.manifest import COLUMNS, SPLITS, read_table, split_hash
from mg3d.data.volumes import apply_window
from mg3d.params import VolumeContract


@dataclass(frozen=True)
class Pair:
    """A study: ``volume`` [1, D, H, W] float32 in [0, 1], and its report's sentences in order."""

    study_id: str
    volume: Tensor
    sentences: list[str]


class Pairs(Dataset[Pair]):
    """Pairs of one split under ``prepared``, ordered by study id.

    Raises ValueError if the volumes were packed under another contract, if the manifest and the
    recorded splits disagree, or if the split is empty.
    """

    def __init__(self, prepared: Path, split: str, contract: VolumeContract) -> None:
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
        self._sentences: list[list[str]] = [texts[report] for report in rows["report_id"]]

    def __len__(self) -> int:
        return len(self.study_ids)

    def __getitem__(self, index: int) -> Pair:
        hu = np.load(self._volumes[index], mmap_mode="r", allow_pickle=False)
        if hu.dtype != np.int16 or hu.shape != self.contract.shape_voxels:
            raise ValueError(
                f"volume of {self.study_ids[index]} is {hu.dtype} {hu.shape}, the contract says "
                f"int16 {self.contract.shape_voxels}: run `dvc repro --force pack_volumes`"
            )
        volume = torch.from_numpy(apply_window(hu, self.contract.window_hu))
        return Pair(self.study_ids[index], volume[None], self._sentences[index])


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
class Tokens:
    """A tokenised report; the three lists are of equal length, at most ``max_tokens``."""

    input_ids: list[int]
    sentence_index: list[int]  # -1 for specials, else 0-based sentence
    word_index: list[int]  # -1 for specials, else 0-based whole word
    num_truncated: int  # tokens beyond max_tokens


def tokenize_report(sentences: Sequence[str], tokenizer: Any, max_tokens: int) -> Tokens:
    """Tokenise sentences as one text: [CLS] words [SEP]; truncation keeps the [SEP].

    ``tokenizer`` is a fast BERT-like tokenizer (offsets and word ids).
    """
    encoded = tokenizer(
        " ".join(sentences),
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=False,
        padding=False,
        verbose=False,
    )
    starts = np.cumsum([0, *(len(sentence) + 1 for sentence in sentences)])[:-1].tolist()
    kept = max_tokens - 2
    sentence_index = [bisect_right(starts, start) - 1 for start, _ in encoded["offset_mapping"]]
    num_tokens = len(encoded["input_ids"])
    return Tokens(
        [tokenizer.cls_token_id, *encoded["input_ids"][:kept], tokenizer.sep_token_id],
        [-1, *sentence_index[:kept], -1],
        [-1, *encoded.word_ids()[:kept], -1],
        max(0, num_tokens - kept),
    )


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
        num_sentences = max(1, int(sentence_index.max()) + 1)
        sentences = torch.arange(num_sentences)
        return Batch(
            study_ids=[pair.study_id for pair in pairs],
            volume=torch.stack([pair.volume for pair in pairs]),
            input_ids=input_ids,
            attention_mask=_pad([[1] * len(report.input_ids) for report in reports], 0),
            sentence_index=sentence_index,
            word_index=_pad([report.word_index for report in reports], -1),
            sentence_mask=(sentence_index[:, :, None] == sentences).any(dim=1),
            num_truncated=sum(report.num_truncated for report in reports),
        )


def _pad(rows: Sequence[list[int]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=value
    )
