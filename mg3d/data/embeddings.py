"""STAGE embed_sentences: sentences -> means of the frozen text encoder's features.

The encoder never learns and the mean commutes with the projection that does (spec/model 3), so a
whole report is encoded once and for all, not in every step. Each report goes through the encoder
alone, on one thread and without padding: its means depend neither on other reports nor on the
number of workers, bit by bit. (Batches of equal lengths were no faster on a CPU.)

``means.npy`` has one row per sentence, ordered by report and index; ``means.parquet`` says where a
report's rows begin and what they were made from. Reading maps the file and touches a report's rows.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mg3d import paths
from mg3d.data.tokens import tokenize_report
from mg3d.ledger import Ledger, Reason
from mg3d.parallel import parallel_map
from mg3d.params import EmbedSentences, TextEncoder

if TYPE_CHECKING:
    from mg3d.models.text import FrozenTextEncoder

ORIGIN = ["weights_sha256", "tokenizer_sha256", "max_tokens"]
COLUMNS = [
    *("report_id", "first_row", "num_sentences"),
    "num_embedded",  # the first so many have tokens, the rest was truncated and is 0
    *("sentences_sha256", "means_sha256", "text_encoder"),
    *ORIGIN,
]
REMEDY = "run `dvc repro`, or `dvc repro --force embed_sentences` if params.yaml is as it was"


def embed_sentences(source: Path, out: Path, params: EmbedSentences, text: TextEncoder) -> Ledger:
    """Embed segment_sentences' table under ``source`` (prepared): ``out/means.npy``, its table.

    Tokens are those of training: a sentence beyond ``text.max_tokens`` has none. Returns the ledger
    of the reports, also written to ``out``. Raises ValueError if there are no sentences, if the
    encoder cannot be loaded, or if there is no such device.
    """
    import pandas as pd
    import torch

    table = paths.stage_folder("segment_sentences", source) / paths.SENTENCE_TABLE
    if not table.is_file():
        raise ValueError(f"no {table}: run segment_sentences first, or `dvc repro`")
    if params.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("embed_sentences.device is cuda and there is none: set it to cpu")
    sentences = pd.read_parquet(table, columns=["report_id", "index", "text"])
    if sentences.empty:
        raise ValueError(f"no sentence in {table}: run `dvc repro`")
    reports = sentences.sort_values("index").groupby("report_id")["text"].agg(list)
    ledger = Ledger("embed_sentences", "report", reports.index)

    _loaded.cache_clear()  # a folder may hold other weights by now
    encoder, tokenizer = _loaded(text, params.device)
    made_from = [text.name_or_folder, *_origin(encoder, tokenizer, text.max_tokens).values()]
    embedded = parallel_map(
        partial(_embed, text=text, device=params.device),
        reports.tolist(),
        params.num_workers if params.device == "cpu" else 1,
        "embed_sentences: reports",
    )
    rows = []
    first_row = 0
    with (
        paths.atomic_write(out / paths.SENTENCE_MEANS) as temporary,
        temporary.open("wb") as file,
    ):
        shape = (len(sentences), encoder.hidden_size)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for (report_id, of_report), (means, num_embedded) in zip(
            reports.items(), embedded, strict=True
        ):
            file.write(means.tobytes())
            if num_embedded:
                ledger.use(report_id)
            else:
                ledger.quarantine(report_id, Reason.NO_TOKENS)
            place = (report_id, first_row, len(of_report), num_embedded)
            rows.append((*place, _sha256(of_report), _sha256_of_rows(means), *made_from))
            first_row += len(of_report)
    with paths.atomic_write(out / paths.SENTENCE_MEANS_TABLE) as temporary:
        pd.DataFrame(rows, columns=COLUMNS).to_parquet(temporary, index=False)
    ledger.write(out)
    return ledger


class SentenceMeans:
    """What the stage wrote under ``prepared``, for the text encoder of a training.

    Raises ValueError naming the remedy if it is not there, or was made with other weights, another
    tokenizer or another ``max_tokens``.
    """

    def __init__(
        self, prepared: Path, encoder: "FrozenTextEncoder", tokenizer: Any, max_tokens: int
    ) -> None:
        import pandas as pd

        folder = paths.stage_folder("embed_sentences", prepared)
        table = folder / paths.SENTENCE_MEANS_TABLE
        self._file = folder / paths.SENTENCE_MEANS
        for path in (table, self._file):
            if not path.is_file():
                raise ValueError(f"no {path}: {REMEDY}")
        means = pd.read_parquet(table, columns=COLUMNS)
        for name, value in _origin(encoder, tokenizer, max_tokens).items():
            if other := sorted(set(means[name]) - {value}):
                raise ValueError(f"{table} was made with {name} {other[0]}, not {value}: {REMEDY}")
        shape = (int(means["num_sentences"].sum()), encoder.hidden_size)
        array = np.load(self._file, mmap_mode="r", allow_pickle=False)
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(
                f"{self._file} is {array.dtype} {array.shape}, not float32 {shape} as its table "
                f"says: {REMEDY}"
            )
        self._reports = {row.report_id: row for row in means.itertuples(index=False)}

    def require(self, reports: Mapping[str, Sequence[str]]) -> None:
        """Raise ValueError unless each report, by id, is here and has these sentences."""
        for report_id, sentences in reports.items():
            known = self._reports.get(report_id)
            if known is None or known.sentences_sha256 != _sha256(sentences):
                why = "is missing in" if known is None else "had other sentences in"
                raise ValueError(f"report {report_id} {why} {self._file.parent}: {REMEDY}")

    def of(self, report_id: str) -> np.ndarray:
        """[S, E] float32 of the sentences that have tokens. Raises ValueError if damaged."""
        row = self._reports[report_id]
        array = np.load(self._file, mmap_mode="r", allow_pickle=False)
        means = np.array(array[row.first_row : row.first_row + row.num_sentences])
        if _sha256_of_rows(means) != row.means_sha256:
            raise ValueError(
                f"{self._file} is damaged at {report_id}: run `dvc repro --force embed_sentences`"
            )
        return means[: row.num_embedded]


def _origin(encoder: "FrozenTextEncoder", tokenizer: Any, max_tokens: int) -> dict[str, str | int]:
    """What decides the means of given sentences, by column."""
    weights = bytes(encoder.digest.tolist()).hex()
    tokens = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    return dict(zip(ORIGIN, (weights, tokens, max_tokens), strict=True))


def _embed(
    sentences: Sequence[str], text: TextEncoder, device: Literal["cpu", "cuda"]
) -> tuple[np.ndarray, int]:
    """Means [S, E] float32 of a report, and how many sentences come before those truncated."""
    import torch

    from mg3d.models.text import sentence_means

    with _one_thread():
        encoder, tokenizer = _loaded(text, device)
        tokens = tokenize_report(sentences, tokenizer, text.max_tokens)
        input_ids = torch.tensor([tokens.input_ids], device=device)
        sentence_index = torch.tensor([tokens.sentence_index], device=device)
        listed = torch.ones(1, len(sentences), dtype=torch.bool, device=device)
        contextual = encoder(input_ids, torch.ones_like(input_ids))
        means, _ = sentence_means(contextual, sentence_index, listed)
    return means[0].float().cpu().numpy(), max(tokens.sentence_index) + 1


@lru_cache(maxsize=1)  # once per process
def _loaded(text: TextEncoder, device: str) -> tuple["FrozenTextEncoder", Any]:
    from mg3d.models.text import FrozenTextEncoder, load_tokenizer

    return FrozenTextEncoder(text).to(device), load_tokenizer(text.name_or_folder)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sha256(sentences: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(sentences)).encode()).hexdigest()


def _sha256_of_rows(means: np.ndarray) -> str:
    return hashlib.sha256(means.tobytes()).hexdigest()
