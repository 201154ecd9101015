"""A random BERT of 32 channels in a folder, and batches for it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from mg3d.models.mg3d import Inputs
from mg3d.objectives.mim import mask_blocks
from mg3d.objectives.mlm import mask_words
from mg3d.params import Model, TextEncoder, VisionEncoder

VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "no", "is", "the", "there", "a"),
    *("small", "large", "right", "left", "pleural", "effusion", "heart", "normal", "enlarged"),
    *("lung", "lungs", "are", "clear", "nodule", "##s", "##ular", "in", "upper", "lower", "lobe"),
]
PAD, CLS, SEP, MASK = 0, 2, 3, 4


def _write_bert(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return folder


@pytest.fixture(scope="session")
def write_bert() -> Callable[..., Path]:
    return _write_bert


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tiny_vision() -> VisionEncoder:
    return VisionEncoder(embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_voxels=2)


@pytest.fixture(scope="session")
def tiny_model(bert_folder: Path, tiny_vision: VisionEncoder) -> Model:
    text = TextEncoder(name_or_folder=str(bert_folder), max_tokens=64)
    return Model(vision=tiny_vision, text=text)


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., Inputs]:
    """Random reports of given sentence lengths, one list of lengths per report, and volumes."""

    def make(
        lengths: list[list[int]] | None = None,
        shape: tuple[int, int, int] = (64, 32, 32),
        seed: int = 0,
        extra_tokens: int = 0,
        extra_sentences: int = 0,
    ) -> Inputs:
        lengths = [[3, 4], [5, 2, 3], [4]] if lengths is None else lengths
        generator = torch.Generator().manual_seed(seed)
        num_tokens = max(map(sum, lengths)) + 2 + extra_tokens
        input_ids = torch.full((len(lengths), num_tokens), PAD)
        sentence_index = torch.full_like(input_ids, -1)
        word_index = torch.full_like(input_ids, -1)
        attention_mask = torch.zeros_like(input_ids)
        num_sentences = max(map(len, lengths)) + extra_sentences
        sentence_mask = torch.zeros(len(lengths), num_sentences, dtype=torch.bool)
        for row, report in enumerate(lengths):
            end = sum(report) + 1
            words = torch.randint(5, len(VOCABULARY), (end - 1,), generator=generator)
            input_ids[row, 0], input_ids[row, 1:end], input_ids[row, end] = CLS, words, SEP
            attention_mask[row, : end + 1] = 1
            sentence_index[row, 1:end] = torch.repeat_interleave(
                torch.arange(len(report)), torch.tensor(report, dtype=torch.long)
            )
            word_index[row, 1:end] = torch.arange(end - 1)
            sentence_mask[row, : len(report)] = True
        shown = slice(0, num_tokens - extra_tokens)  # the same draws with and without padding
        masked, labels = mask_words(
            input_ids[:, shown], word_index[:, shown], 0.3, MASK, len(VOCABULARY), generator
        )
        masked_ids, mlm_labels = input_ids.clone(), torch.full_like(input_ids, -100)
        masked_ids[:, shown], mlm_labels[:, shown] = masked, labels
        volume = torch.rand(len(lengths), 1, *shape, generator=generator)
        masked_volume, voxel_mask = mask_blocks(volume, 0.5, 16, generator)
        return Inputs(
            volume=volume,
            masked_volume=masked_volume,
            voxel_mask=voxel_mask,
            input_ids=input_ids,
            masked_ids=masked_ids,
            mlm_labels=mlm_labels,
            attention_mask=attention_mask,
            sentence_index=sentence_index,
            sentence_mask=sentence_mask,
        )

    return make
