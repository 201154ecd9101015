"""One way for the model and for its nulls: diagnose, train a reporter, let it write.

The decoder learns the language first, from training reports and the findings they assert; that
`Language` is the null ``text_only``. Then it learns to look: at tokens, or at volumes through an
encoder that learns too. In training the prompt is what a report asserts, afterwards what
`diagnosis` finds in the pooled tokens of the encoder as it was before training moved it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mg3d.finetuning.diagnosis import Diagnosis, fit_diagnosis
from mg3d.finetuning.fitting import fit_head
from mg3d.finetuning.reporter import Reporter, encode
from mg3d.finetuning.task import Case, OnMetrics
from mg3d.metrics.findings import example_f1, finding_matrix
from mg3d.params import CtrgReport

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Inputs = Callable[[Sequence[Case]], Tensor]  # cases -> tokens [B, N, C] or volumes


@dataclass(frozen=True)
class Corpus:
    """What every system learns from."""

    train: Sequence[Case]
    validation: Sequence[Case]
    tokenizer: "Tokenizer"
    params: CtrgReport


@dataclass(frozen=True)
class Writer:
    """A trained reporter with its diagnosis and what it reads."""

    reporter: Reporter
    diagnosis: Diagnosis
    tokens: Mapping[str, Tensor]
    inputs: Inputs
    corpus: Corpus

    def write(self, cases: Sequence[Case]) -> list[str]:
        """A report for each case (`written_reports`)."""
        params, tokenizer = self.corpus.params, self.corpus.tokenizer
        written: list[str] = []
        for start in range(0, len(cases), params.batch_size):
            chosen = cases[start : start + params.batch_size]
            diagnosed = self.diagnosis.findings(_pooled(self.tokens, chosen))
            inputs = self.inputs(chosen)
            written += written_reports(self.reporter, inputs, diagnosed, tokenizer, params)
        return written


def written_reports(
    reporter: Reporter,
    inputs: Tensor,
    diagnosed: np.ndarray,
    tokenizer: "Tokenizer",
    params: CtrgReport,
) -> list[str]:
    """The reports of a batch: of each beam's drafts the one closest to its findings [B, K]."""
    ids = reporter.generate(
        (inputs, torch.from_numpy(diagnosed)), params.num_beams, params.max_new_tokens
    )
    drafts = [draft.strip() for draft in tokenizer.decode_batch(ids.tolist())]
    written = []
    for row, wanted in enumerate(diagnosed):
        own = drafts[row * params.num_beams : (row + 1) * params.num_beams]
        written.append(own[closest(own, wanted)])
    return written


def closest(drafts: Sequence[str], diagnosed: np.ndarray) -> int:
    """Which draft asserts most nearly the findings ``diagnosed`` [K] (F1), the first of equals."""
    asserted = finding_matrix(drafts)
    f1 = example_f1(asserted, np.broadcast_to(diagnosed, asserted.shape))
    return int(np.nan_to_num(f1, nan=1.0).argmax())  # NaN: nothing wanted, nothing asserted


def fit_writer(
    corpus: Corpus,
    tokens: Mapping[str, Tensor],
    inputs: Inputs,
    encoder: Any,
    on_metrics: OnMetrics,
    name: str,
    knows: Reporter | None = None,
) -> Writer:
    """Train on the training cases. ``tokens`` [N, C] by case id; ``encoder`` learns too unless
    None; ``knows`` is the reporter whose decoder and prompt it starts from."""
    params, train, validation = corpus.params, corpus.train, corpus.validation
    diagnosis = fit_diagnosis(
        _pooled(tokens, train), _asserted(train), _pooled(tokens, validation), _asserted(validation)
    )

    def make_batch(cases: Sequence[Case]) -> tuple[Tensor, Tensor, Tensor]:
        ids = encode(corpus.tokenizer, [case.text for case in cases], params.max_new_tokens)
        return inputs(cases), torch.from_numpy(_asserted(cases)), ids

    torch.manual_seed(params.seed)
    train_tokens = torch.stack([tokens[case.case_id] for case in train])
    reporter = Reporter(train_tokens, corpus.tokenizer.get_vocab_size(), params, encoder)
    if knows is not None:
        reporter.take_language(knows)
    fit_head(reporter, train, validation, make_batch, params, on_metrics, name)
    return Writer(reporter, diagnosis, tokens, inputs, corpus)


def silent(step: int, metrics: dict[str, float]) -> None:
    """Nobody watches a baseline learn."""


def fit_language(corpus: Corpus, name: str, test: Sequence[str]) -> Writer:
    """What can be written without any image; ``test`` are the ids of the test cases."""
    nothing = torch.zeros(1, 1)  # the one token says nothing
    known = [*(case.case_id for case in (*corpus.train, *corpus.validation)), *test]
    tokens = dict.fromkeys(known, nothing)
    return fit_writer(corpus, tokens, stacked(tokens), None, silent, name)


def stacked(tokens: Mapping[str, Tensor]) -> Inputs:
    """Cases -> their tokens [B, N, C]."""
    return lambda cases: torch.stack([tokens[case.case_id] for case in cases])


def _pooled(tokens: Mapping[str, Tensor], cases: Sequence[Case]) -> np.ndarray:
    """Mean tokens, float64 [B, C]."""
    width = next(iter(tokens.values())).shape[-1]
    rows = [tokens[case.case_id].mean(0).double().numpy() for case in cases]
    return np.stack(rows) if rows else np.zeros((0, width))


def _asserted(cases: Sequence[Case]) -> np.ndarray:
    return finding_matrix([case.text for case in cases])
