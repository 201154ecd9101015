"""Kind: write the findings of a chest CT; a small decoder (`reporter`) reads the Swin's tokens.

The encoder stays ``frozen`` or learns too (``finetune``, ``scratch``); the decoder is always new.
Raw text is scored against raw text. Nulls, because the language is templated: what the training
reports allow without any image (``most_frequent_report``; ``fixed_report``, the one with the best
BLEU-4 among them; ``text_only``, the decoder before it has seen an image), the
``nearest_training_report`` by image embedding, and ``shuffled_images``, every case with the text
written for another's image.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mg3d import paths
from mg3d.figures import report_generation as figures
from mg3d.finetuning.encoders import starting_encoder
from mg3d.finetuning.fitted import keep_fitted
from mg3d.finetuning.fitting import fit_head
from mg3d.finetuning.image_free import best_by_bleu, most_frequent
from mg3d.finetuning.images import PackedCases, packed_cases
from mg3d.finetuning.reporter import Reporter, encode, train_tokenizer
from mg3d.finetuning.task import Case, OnMetrics, Scores, Split
from mg3d.ledger import Ledger
from mg3d.metrics import text
from mg3d.metrics.bootstrap import Estimate, estimate, mean_estimate, unavailable
from mg3d.metrics.findings import (
    FINDINGS,
    example_f1,
    finding_matrix,
    macro_f1,
    micro_f1,
    micro_precision,
    micro_recall,
)
from mg3d.params import CtrgReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "report_generation"
MODEL = "model"
NULLS = (
    "most_frequent_report",
    "fixed_report",
    "text_only",
    "nearest_training_report",
    "shuffled_images",
)
SLICES, TOKENIZER, FACTS = "slices.npz", "tokenizer.json", "facts.json"
SCORED = "scored.jsonl"
EMBED_BATCH = 4
NUM_SHOWN = 4


def predict(
    split: Split,
    checkpoint: Path,
    predictions: Path,
    params: CtrgReport,
    ledger: Ledger,
    on_metrics: OnMetrics,
    prefix: str,
) -> dict[str, Any]:
    """Write ``<system>.jsonl`` (case_id, patient_id, reference, hypothesis), the tokenizer and the
    slices that the sheet shows (see `Kind.predict`).

    Raises ValueError for the mode ``zero_shot``.
    """
    if params.mode == "zero_shot":
        raise ValueError("report generation has no zero_shot mode: use frozen, finetune or scratch")
    encoder, contract, provenance = starting_encoder(checkpoint, params)
    frozen = params.mode == "frozen"
    with packed_cases(split, contract, ledger) as volumes:
        train, validation = split["train"], split["validation"]
        texts = [case.text for case in train]
        tokenizer = train_tokenizer(texts, params.vocabulary_size)
        tokens = _tokens(encoder, [c for cases in split.values() for c in cases], volumes)

        def with_images(cases: Sequence[Case]) -> Tensor:
            if frozen:
                return torch.stack([tokens[case.case_id] for case in cases])
            return volumes.batch(cases)

        def without(cases: Sequence[Case]) -> Tensor:
            return torch.zeros(len(cases), 1, 1)  # the one token says nothing

        def fitted(
            train_tokens: Tensor, inputs: Any, encoder: Any, name: str, knows: Reporter | None
        ) -> Reporter:
            def make_batch(cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
                chosen = [case.text for case in cases]
                return inputs(cases), encode(tokenizer, chosen, params.max_new_tokens)

            torch.manual_seed(params.seed)
            reporter = Reporter(train_tokens, tokenizer.get_vocab_size(), params, encoder)
            if knows is not None:
                reporter.decoder.load_state_dict(knows.decoder.state_dict())
            report = on_metrics if name == prefix else lambda step, metrics: None
            fit_head(reporter, train, validation, make_batch, params, report, name)
            return reporter

        def write(reporter: Reporter, inputs: Any, cases: Sequence[Case]) -> list[str]:
            written: list[str] = []
            for start in range(0, len(cases), params.batch_size):
                batch = inputs(cases[start : start + params.batch_size])
                ids = reporter.generate(batch, params.num_beams, params.max_new_tokens)
                written += [one.strip() for one in tokenizer.decode_batch(ids.tolist())]
            return written

        train_tokens = torch.stack([tokens[case.case_id] for case in train])
        # The decoder learns the language first, which is a null of its own, and then to look.
        text_only = fitted(without(train), without, None, f"{prefix}/text_only", None)
        learnt = None if frozen else encoder
        reporter = fitted(train_tokens, with_images, learnt, prefix, text_only)
        keep_fitted(
            predictions, reporter, task=prefix, kind=NAME, params=params,
            contract_digest=contract.digest(), tokenizer=tokenizer.to_str(),
        )  # fmt: skip
        test = split["test"]
        written = write(reporter, with_images, test)
        frequent, times = most_frequent(texts)
        fixed, fixed_bleu = best_by_bleu(texts, params.seed)
        shuffled = _derange(np.random.default_rng(params.seed).permutation(len(test)))
        for system, hypotheses in (
            (MODEL, written),
            ("most_frequent_report", [frequent] * len(test)),
            ("fixed_report", [fixed] * len(test)),
            ("text_only", write(text_only, without, test[:1]) * len(test)),
            # by the encoder as it was before fine-tuning moved it
            ("nearest_training_report", _nearest(tokens, train, test)),
            ("shuffled_images", [written[index] for index in shuffled]),
        ):
            _write(predictions / f"{system}.jsonl", _rows(test, hypotheses))
        slices: Any = {case.case_id: volumes.slices(case, 3) for case in test[:NUM_SHOWN]}
    np.savez_compressed(predictions / SLICES, **slices)
    tokenizer.save(str(predictions / TOKENIZER))
    seen = set(texts)
    facts = {
        "train_reports": len(train),
        "train_reports_cut": sum(
            len(tokenizer.encode(case.text).ids) + 1 > params.max_new_tokens for case in train
        ),
        "most_frequent_report_times": times,
        "fixed_report_bleu_4_in_training": fixed_bleu,
        "test_reports_also_in_train": sum(case.text in seen for case in test),
        "vocabulary_size": tokenizer.get_vocab_size(),
    }
    with paths.atomic_write(predictions / FACTS) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")
    return provenance


def score(predictions: Path, params: CtrgReport) -> Scores:
    """Corpus scores of whole raw texts; also writes ``scored.jsonl``, the model's cases one by one
    with their own scores and the findings that each text asserts."""
    tables = {system: _read(predictions / f"{system}.jsonl") for system in (MODEL, *NULLS)}
    rows = tables[MODEL]
    _write(predictions / SCORED, _scored(rows))
    counts: dict[str, float] = json.loads((predictions / FACTS).read_text())
    counts["test_cases"] = len(rows)
    counts["distinct_hypotheses"] = len({row["hypothesis"] for row in rows})
    counts["empty_hypotheses"] = sum(not row["hypothesis"] for row in rows)
    return Scores(
        metrics=_metrics(rows, params),
        nulls={null: _metrics(tables[null], params) for null in NULLS},
        counts=counts,
        notes=(
            f"raw text against raw text, normaliser {text.NORMALISER}; references are never cut",
            "bleu_1..4: pycocoevalcap, no smoothing; sacrebleu: its own tokeniser 13a, case kept, "
            "smoothing exp; rouge_l_f1: rouge-score; rouge_l_beta: pycocoevalcap, recall weighs "
            "1.2; cider_d: pycocoevalcap",
            "text_only has had half of the model's steps: those before it saw an image",
            "keyword_* come from a rule-based keyword labeller, fitted to the phantom's wording: "
            "not a trained labeller, not clinical efficacy",
            "CIDEr-D takes document frequencies from these references: of little meaning on a "
            "small test set",
            "BLEU and ROUGE-L carry no claim on templated reports: read them beside the nulls",
        ),
    )


def draw(predictions: Path, params: CtrgReport) -> "dict[str, Figure]":
    """``reports``: slices, both texts with what they share, findings in agreement."""
    shown = []
    with np.load(predictions / SLICES, allow_pickle=False) as slices:
        for row in _scored(_read(predictions / f"{MODEL}.jsonl")):
            if row["case_id"] in slices.files:
                shown.append(
                    figures.Generated(
                        slices=list(slices[row["case_id"]]),
                        reference=row["reference"],
                        hypothesis=row["hypothesis"],
                        reference_findings=frozenset(row["reference_findings"]),
                        hypothesis_findings=frozenset(row["hypothesis_findings"]),
                    )
                )
    return {"reports": figures.report_sheet(shown)}


@torch.no_grad()
def _tokens(encoder: Any, cases: Sequence[Case], volumes: PackedCases) -> dict[str, Tensor]:
    """Visual tokens [N, C] by case id, each volume once."""
    encoder.eval()
    tokens: dict[str, Tensor] = {}
    for start in range(0, len(cases), EMBED_BATCH):
        chosen = cases[start : start + EMBED_BATCH]
        rows = encoder.tokens(volumes.batch(chosen))
        tokens |= {case.case_id: row for case, row in zip(chosen, rows, strict=True)}
    return tokens


def _nearest(tokens: dict[str, Tensor], train: Sequence[Case], test: Sequence[Case]) -> list[str]:
    """Report of the training case with the nearest image (cosine of centred mean tokens)."""
    of_train = torch.stack([tokens[case.case_id].mean(0) for case in train])
    of_test = torch.stack([tokens[case.case_id].mean(0) for case in test])
    centre = of_train.mean(0)
    similarity = nn.functional.normalize(of_test - centre, dim=-1) @ nn.functional.normalize(
        of_train - centre, dim=-1
    ).transpose(0, 1)
    return [train[int(index)].text for index in similarity.argmax(dim=1)]


def _derange(order: np.ndarray) -> np.ndarray:
    """A permutation without fixed points (for two or more): each takes the next in ``order``."""
    shuffled = np.empty_like(order)
    shuffled[order] = np.roll(order, 1)
    return shuffled


def _rows(cases: Sequence[Case], hypotheses: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "case_id": case.case_id,
            "patient_id": case.patient_id,
            "reference": case.text,
            "hypothesis": hypothesis,
        }
        for case, hypothesis in zip(cases, hypotheses, strict=True)
    ]


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with paths.atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _scored(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the scores of each case alone (null where undefined) and its findings."""
    hypotheses = [row["hypothesis"] for row in rows]
    references = [row["reference"] for row in rows]
    statistics = text.bleu_statistics(hypotheses, references)
    predicted, true = finding_matrix(hypotheses), finding_matrix(references)
    f1 = example_f1(predicted, true)
    of_case = {
        "rouge_l_f1": text.rouge_l_f1(hypotheses, references),
        "rouge_l_beta": text.rouge_l_beta(hypotheses, references),
        "cider_d": text.cider_d(hypotheses, references),
    }
    return [
        {
            **row,
            **{f"bleu_{n}": v for n, v in enumerate(text.bleu(statistics[[at]]).tolist(), 1)},
            **{name: float(values[at]) for name, values in of_case.items()},
            "keyword_f1": None if np.isnan(f1[at]) else float(f1[at]),
            "reference_findings": _named(true[at]),
            "hypothesis_findings": _named(predicted[at]),
        }
        for at, row in enumerate(rows)
    ]


def _named(asserted: np.ndarray) -> list[str]:
    return [name for name, is_asserted in zip(FINDINGS, asserted, strict=True) if is_asserted]


def _metrics(rows: Sequence[dict[str, Any]], params: CtrgReport) -> dict[str, Estimate]:
    hypotheses = [row["hypothesis"] for row in rows]
    references = [row["reference"] for row in rows]
    patients = [row["patient_id"] for row in rows]
    common: Any = {"num_resamples": params.num_bootstrap, "seed": params.seed}
    statistics = text.bleu_statistics(hypotheses, references)
    raw_statistics = text.sacrebleu_statistics(hypotheses, references)
    predicted, true = finding_matrix(hypotheses), finding_matrix(references)
    nothing = "no finding is asserted"
    of_cells = {
        "keyword_micro_f1": micro_f1,
        "keyword_macro_f1": macro_f1,
        "keyword_micro_precision": micro_precision,
        "keyword_micro_recall": micro_recall,
    }
    return {
        **{
            f"bleu_{n}": estimate(
                lambda chosen, n=n: float(text.bleu(statistics[chosen])[n - 1]),  # type: ignore[misc]
                patients,
                **common,
            )
            for n in range(1, 5)
        },
        "sacrebleu": estimate(
            lambda chosen: text.sacrebleu(raw_statistics[chosen]), patients, **common
        ),
        "rouge_l_f1": mean_estimate(text.rouge_l_f1(hypotheses, references), patients, **common),
        "rouge_l_beta": mean_estimate(
            text.rouge_l_beta(hypotheses, references), patients, **common
        ),
        "cider_d": mean_estimate(text.cider_d(hypotheses, references), patients, **common),
        **{
            name: estimate(
                lambda chosen, f=function: f(predicted[chosen], true[chosen]),  # type: ignore[misc]
                patients,
                undefined=nothing,
                **common,
            )
            for name, function in of_cells.items()
        },
        "keyword_example_f1": mean_estimate(
            example_f1(predicted, true), patients, undefined=nothing, **common
        ),
        "meteor": unavailable("METEOR needs Java or WordNet, neither of which is a dependency"),
        "clinical_f1": unavailable("needs the weights of a trained CT labeller (RadBERT, RadEval)"),
    }
