"""embed_sentences: means of a sentence's tokens, the same bits each time, checked on reading."""

import os
import shutil
import signal
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertModel

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tiny_prepared import write_text_encoder

from mg3d import paths
from mg3d.data import embeddings
from mg3d.data.embeddings import SentenceMeans, embed_sentences
from mg3d.data.pairs import Collate, Pair
from mg3d.ledger import read_summaries
from mg3d.models.text import FrozenTextEncoder, load_tokenizer
from mg3d.params import EmbedSentences, TextEncoder

REPORTS = {
    "r3": ["The heart is enlarged.", "No pleural effusion.", "Nodule."],
    "r1": ["No nodule."],
    # 7, 5, 2 and 2 tokens: with [CLS] and [SEP] the second does not fit, so the others are gone too
    "r2": ["Nodule in the right upper lobe.", "The heart is enlarged.", "No.", "Effusion."],
    "r0": ["\u200b"],  # a character that the tokenizer drops
}
MAX_TOKENS = 13  # r3 fills them: 5 + 4 + 2
WIDTH = 32
FILES = {paths.SENTENCE_MEANS, paths.SENTENCE_MEANS_TABLE, "ledger.json", "ledger.jsonl"}


def _write_sentences(prepared: Path, reports: dict[str, list[str]] = REPORTS) -> None:
    folder = prepared / "segment_sentences"
    folder.mkdir(parents=True)
    rows = [(r, i, text) for r, report in reports.items() for i, text in enumerate(report)]
    table = pd.DataFrame(rows[::-1], columns=["report_id", "index", "text"])  # out of order
    table.to_parquet(folder / paths.SENTENCE_TABLE)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = tmp_path_factory.mktemp("text") / "encoder"
    write_text_encoder(folder)
    return TextEncoder(name_or_folder=str(folder), max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def encoder(text: TextEncoder) -> FrozenTextEncoder:
    return FrozenTextEncoder(text)


@pytest.fixture(scope="module")
def tokenizer(text: TextEncoder) -> Any:
    return load_tokenizer(text.name_or_folder)


def _embed(prepared: Path, text: TextEncoder, **params: Any) -> dict[str, object]:
    out = prepared / "embed_sentences"
    return embed_sentences(prepared, out, EmbedSentences(**params), text).summary()


@pytest.fixture(scope="module")
def made(text: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepared = tmp_path_factory.mktemp("prepared")
    _write_sentences(prepared)
    _embed(prepared, text)
    return prepared


@pytest.fixture
def prepared(made: Path, tmp_path: Path) -> Path:
    """A copy to be tampered with."""
    return Path(shutil.copytree(made, tmp_path / "prepared"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_means_are_those_of_a_loop_over_tokens(
    made: Path, text: TextEncoder, encoder: FrozenTextEncoder, tokenizer: Any
) -> None:
    bert = BertModel.from_pretrained(text.name_or_folder).eval()
    means = SentenceMeans(made, encoder, tokenizer, MAX_TOKENS)
    for report_id, report in REPORTS.items():
        words = [(s, w) for s, text in enumerate(report) for w in tokenizer.tokenize(text)]
        if len(words) > MAX_TOKENS - 2:
            words = [(s, w) for s, w in words if s == 0]
        tokens = ["[CLS]", *(word for _, word in words), "[SEP]"]
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
        with torch.no_grad():
            hidden = bert(ids).last_hidden_state[0, 1:-1].double().numpy()
        found = means.of(report_id)
        assert found.dtype == np.float32
        assert len(found) == len({s for s, _ in words})
        for sentence in range(len(found)):
            own = [hidden[place] for place, (s, _) in enumerate(words) if s == sentence]
            np.testing.assert_allclose(found[sentence], sum(own) / len(own), rtol=0, atol=2e-6)
    assert [len(means.of(report_id)) for report_id in ("r0", "r1", "r2", "r3")] == [0, 1, 1, 3]


def test_one_row_per_sentence_and_a_ledger_of_the_reports(prepared: Path) -> None:
    folder = prepared / "embed_sentences"
    table = pd.read_parquet(folder / paths.SENTENCE_MEANS_TABLE).set_index("report_id")
    assert table["first_row"].to_dict() == {"r0": 0, "r1": 1, "r2": 2, "r3": 6}
    assert table["num_sentences"].to_dict() == {"r0": 1, "r1": 1, "r2": 4, "r3": 3}
    assert table["num_embedded"].to_dict() == {"r0": 0, "r1": 1, "r2": 1, "r3": 3}
    array = np.load(folder / paths.SENTENCE_MEANS, mmap_mode="r", allow_pickle=False)
    assert isinstance(array, np.memmap)
    assert array.shape == (9, WIDTH)
    zero = [row for row in range(9) if not array[row].any()]
    assert zero == [0, 3, 4, 5]  # without tokens
    (summary,) = read_summaries(prepared)
    assert summary == {
        "stage": "embed_sentences",
        "unit": "report",
        "inputs": 4,
        "used": 3,
        "quarantined": 1,
        "reasons": {"no_tokens": 1},
    }


def test_the_same_bits_twice_on_two_processes_and_on_more_threads(
    made: Path, text: TextEncoder, tmp_path: Path
) -> None:
    expected = _contents(made / "embed_sentences")
    assert expected.keys() == FILES
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for num_workers in (1, 2):
            out = tmp_path / str(num_workers)
            embed_sentences(made, out, EmbedSentences(num_workers=num_workers), text)
            assert _contents(out) == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_reports_means_do_not_depend_on_the_others(
    made: Path, text: TextEncoder, encoder: FrozenTextEncoder, tokenizer: Any, tmp_path: Path
) -> None:
    _write_sentences(tmp_path, {"r2": REPORTS["r2"]})
    _embed(tmp_path, text)
    alone, among = (
        SentenceMeans(p, encoder, tokenizer, MAX_TOKENS).of("r2") for p in (tmp_path, made)
    )
    np.testing.assert_array_equal(alone, among)


def test_a_batch_pads_them_as_its_sentence_mask_says(
    made: Path, encoder: FrozenTextEncoder, tokenizer: Any
) -> None:
    means = SentenceMeans(made, encoder, tokenizer, MAX_TOKENS)
    volume = torch.zeros(1, 2, 2, 2)
    pairs = [Pair(r, volume, REPORTS[r], torch.from_numpy(means.of(r))) for r in REPORTS]
    pairs.append(Pair("none", volume, [], torch.zeros(0, WIDTH)))
    batch = Collate(tokenizer, MAX_TOKENS)(pairs)
    assert batch.sentence_mask.sum(dim=1).tolist() == [3, 1, 1, 0, 0]
    assert batch.sentence_means is not None
    assert batch.sentence_means.shape == (5, 3, WIDTH)
    assert torch.equal(batch.sentence_means.any(dim=-1), batch.sentence_mask)
    np.testing.assert_array_equal(batch.sentence_means[2, :1], means.of("r2"))
    assert (
        Collate(tokenizer, MAX_TOKENS)([*pairs, Pair("x", volume, ["No."])]).sentence_means is None
    )


def test_reading_touches_a_reports_rows_only(
    prepared: Path, encoder: FrozenTextEncoder, tokenizer: Any
) -> None:
    folder, many = prepared / "embed_sentences", 1_000_000
    table = pd.read_parquet(folder / paths.SENTENCE_MEANS_TABLE)
    last = table.iloc[-1:].assign(report_id="huge", first_row=9, num_sentences=many)
    pd.concat([table, last]).to_parquet(folder / paths.SENTENCE_MEANS_TABLE)
    rows = np.load(folder / paths.SENTENCE_MEANS)
    shape = (9 + many, WIDTH)
    array = np.lib.format.open_memmap(folder / "sparse", "w+", np.float32, shape)
    array[:9] = rows
    array.flush()
    (folder / "sparse").replace(folder / paths.SENTENCE_MEANS)
    tracemalloc.start()
    found = SentenceMeans(prepared, encoder, tokenizer, MAX_TOKENS).of("r3")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, rows[6:])
    assert peak < 20e6 < 4 * WIDTH * many


# What was made from something else ---------------------------------------------------------------


def test_another_text_encoder_is_refused(
    made: Path, text: TextEncoder, encoder: FrozenTextEncoder, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"with max_tokens 13, not 64: run `dvc repro`"):
        SentenceMeans(made, encoder, tokenizer, 64)

    other = BertModel.from_pretrained(text.name_or_folder)
    with torch.no_grad():
        other.embeddings.word_embeddings.weight[5, 0] += 1
    folder = Path(shutil.copytree(text.name_or_folder, tmp_path / "encoder"))
    other.save_pretrained(folder)
    weights = FrozenTextEncoder(text.model_copy(update={"name_or_folder": str(folder)}))
    with pytest.raises(ValueError, match=r"with weights_sha256 \w{64}, not \w{64}: run `dvc"):
        SentenceMeans(made, weights, tokenizer, MAX_TOKENS)

    cased = load_tokenizer(text.name_or_folder)
    cased.backend_tokenizer.normalizer.lowercase = False
    with pytest.raises(ValueError, match="with tokenizer_sha256 "):
        SentenceMeans(made, encoder, cased, MAX_TOKENS)


def test_other_sentences_are_refused(
    made: Path, encoder: FrozenTextEncoder, tokenizer: Any
) -> None:
    means = SentenceMeans(made, encoder, tokenizer, MAX_TOKENS)
    means.require(REPORTS)
    for changed in (["No nodule.", "No."], [], ["No nodules."]):
        with pytest.raises(ValueError, match=r"report r1 had other sentences .*dvc repro"):
            means.require({**REPORTS, "r1": changed})
    with pytest.raises(ValueError, match=r"report r9 is missing .*dvc repro"):
        means.require({**REPORTS, "r9": ["No."]})


def test_a_damaged_or_foreign_file_is_refused(
    prepared: Path, encoder: FrozenTextEncoder, tokenizer: Any
) -> None:
    file = prepared / "embed_sentences" / paths.SENTENCE_MEANS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # the last value is of r3
    file.write_bytes(content)
    means = SentenceMeans(prepared, encoder, tokenizer, MAX_TOKENS)
    assert means.of("r1").shape == (1, WIDTH)
    with pytest.raises(ValueError, match=r"is damaged at r3: run `dvc repro --force embed_"):
        means.of("r3")
    np.save(file, np.zeros((8, WIDTH), np.float32))
    with pytest.raises(ValueError, match=r"float32 \(8, 32\), not float32 \(9, 32\) as its table"):
        SentenceMeans(prepared, encoder, tokenizer, MAX_TOKENS)
    file.unlink()
    with pytest.raises(ValueError, match=r"no .*means\.npy: run `dvc repro`"):
        SentenceMeans(prepared, encoder, tokenizer, MAX_TOKENS)


def test_mistakes_name_the_remedy(
    text: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="run segment_sentences first"):
        _embed(tmp_path, text)
    _write_sentences(tmp_path, {})
    with pytest.raises(ValueError, match=r"no sentence in .*sentences\.parquet"):
        _embed(tmp_path, text)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is cuda and there is none: set it to cpu"):
        _embed(tmp_path, text, device="cuda")


# Nothing half-written ----------------------------------------------------------------------------


def _fails_at_the_third(fail: Any) -> Any:
    original, calls = embeddings._embed, iter(range(9))

    def embed(*args: Any, **kwargs: Any) -> Any:
        return fail() if next(calls) == 2 else original(*args, **kwargs)

    return embed


def test_a_failing_stage_writes_nothing(
    prepared: Path, text: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("no space left")

    before = _contents(prepared / "embed_sentences")
    shorter = text.model_copy(update={"max_tokens": 8})
    for folder, expected in (("embed_sentences", before), ("new", {})):
        monkeypatch.setattr(embeddings, "_embed", _fails_at_the_third(fail))
        with pytest.raises(OSError, match="no space left"):
            embed_sentences(prepared, prepared / folder, EmbedSentences(), shorter)
        monkeypatch.undo()
        assert _contents(prepared / folder) == expected


def test_a_killed_stage_leaves_what_was_there(prepared: Path, text: TextEncoder) -> None:
    before = _contents(prepared / "embed_sentences")
    child = os.fork()
    if child == 0:
        try:
            kill = _fails_at_the_third(lambda: os.kill(os.getpid(), signal.SIGKILL))
            embeddings._embed = kill
            _embed(prepared, text.model_copy(update={"max_tokens": 8}))
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    after = _contents(prepared / "embed_sentences")
    assert {name: content for name, content in after.items() if name[0] != "."} == before
