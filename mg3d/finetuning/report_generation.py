"""Kind: write the findings of a chest CT; a small decoder (`reporter`) reads the Swin's tokens and
is told what a `diagnosis` from them finds.

The encoder stays ``frozen`` or learns too (``finetune``, ``scratch``); the decoder is always new.
Raw text is scored against raw text. Nulls, because the language is templated: what the training
reports allow without any image (``most_frequent_report``; ``fixed_report``, the one with the best
BLEU-4 among them; ``text_only``, the decoder before it has seen an image, told the findings that
are frequent), the ``nearest_training_report`` by image embedding, ``shuffled_images``, every case
with the text written for another's image, and ``random_encoder``, the procedure of ``frozen`` on an
untrained encoder.
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
from mg3d.finetuning import report_scores as scores
from mg3d.finetuning.embeddings import embedded
from mg3d.finetuning.encoders import random_encoder, starting_encoder
from mg3d.finetuning.fitted import keep_fitted
from mg3d.finetuning.image_free import best_by_bleu, most_frequent
from mg3d.finetuning.images import packed_cases
from mg3d.finetuning.report_writing import Corpus, Inputs, fit_language, fit_writer, silent, stacked
from mg3d.finetuning.reporter import train_tokenizer
from mg3d.finetuning.selection import choose
from mg3d.finetuning.task import Case, OnMetrics, Scores, Split
from mg3d.ledger import Ledger
from mg3d.metrics.classification import CRG_FLOOR
from mg3d.metrics.text import NORMALISER
from mg3d.params import CtrgReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "report_generation"
MODEL, TEXT_ONLY, RANDOM = "model", "text_only", "random_encoder"
NULLS = (
    "most_frequent_report",
    "fixed_report",
    TEXT_ONLY,
    "nearest_training_report",
    "shuffled_images",
    RANDOM,
)
SLICES, TOKENIZER, FACTS = "slices.npz", "tokenizer.json", "facts.json"
SCORED = "scored.jsonl"
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
    from mg3d.models.vision import tokens_of

    encoder, contract, provenance = starting_encoder(checkpoint, params)
    untrained = random_encoder(checkpoint, params.seed + 1)
    with packed_cases(split, contract, ledger) as volumes:
        everyone = [case for cases in split.values() for case in cases]
        texts = [case.text for case in split["train"]]
        tokenizer = train_tokenizer(texts, params.vocabulary_size)
        corpus = Corpus(split["train"], split["validation"], tokenizer, params)
        writers = {
            TEXT_ONLY: fit_language(
                corpus, f"{prefix}/{TEXT_ONLY}", [case.case_id for case in everyone]
            )
        }
        knows = writers[TEXT_ONLY].reporter
        tokens = embedded(untrained, everyone, volumes, tokens_of)
        writers[RANDOM] = fit_writer(
            corpus, tokens, stacked(tokens), None, silent, f"{prefix}/{RANDOM}", knows
        )
        # The nearest report is by the encoder as it was before fine-tuning moved it.
        tokens = embedded(encoder, everyone, volumes, tokens_of)
        frozen = params.mode == "frozen"
        inputs: Inputs = stacked(tokens) if frozen else volumes.batch
        learning = None if frozen else encoder
        writers[MODEL] = fit_writer(corpus, tokens, inputs, learning, on_metrics, prefix, knows)
        diagnosis = writers[MODEL].diagnosis
        choose(diagnosis_penalty=diagnosis.penalty, diagnosis_threshold=diagnosis.threshold)
        keep_fitted(
            predictions, writers[MODEL].reporter, task=prefix, kind=NAME, params=params,
            contract_digest=contract.digest(), tensors=diagnosis.as_tensors(),
            tokenizer=tokenizer.to_str(), threshold=diagnosis.threshold,
            penalty=diagnosis.penalty,
        )  # fmt: skip
        frequent, times = most_frequent(texts)
        fixed, fixed_bleu = best_by_bleu(texts, params.seed)
        test = split["test"]
        written = {name: writers[name].write(test) for name in (MODEL, RANDOM)}
        shuffled = _derange(np.random.default_rng(params.seed).permutation(len(test)))
        written |= {
            TEXT_ONLY: writers[TEXT_ONLY].write(test[:1]) * len(test),
            "most_frequent_report": [frequent] * len(test),
            "fixed_report": [fixed] * len(test),
            "nearest_training_report": _nearest(tokens, split["train"], test),
            "shuffled_images": [written[MODEL][index] for index in shuffled],
        }
        for system, hypotheses in written.items():
            scores.write(predictions / f"{system}.jsonl", scores.rows_of(test, hypotheses))
        slices: Any = {case.case_id: volumes.slices(case, 3) for case in test[:NUM_SHOWN]}
    np.savez_compressed(predictions / SLICES, **slices)
    tokenizer.save(str(predictions / TOKENIZER))
    seen = set(texts)
    facts = {
        "train_reports": len(texts),
        "train_reports_cut": sum(
            len(tokenizer.encode(text).ids) + 1 > params.max_new_tokens for text in texts
        ),
        "most_frequent_report_times": times,
        "fixed_report_bleu_4_in_training": fixed_bleu,
        "test_reports_also_in_train": sum(case.text in seen for case in test),
        "vocabulary_size": tokenizer.get_vocab_size(),
        **{
            f"{name}_diagnosis_threshold": writer.diagnosis.threshold
            for name, writer in writers.items()
        },
    }
    with paths.atomic_write(predictions / FACTS) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")
    return provenance


def score(predictions: Path, params: CtrgReport) -> Scores:
    """Corpus scores of whole raw texts; also writes ``scored.jsonl``, the model's cases one by one
    with their own scores and the findings that each text asserts."""
    tables = {system: scores.read(predictions / f"{system}.jsonl") for system in (MODEL, *NULLS)}
    rows = tables[MODEL]
    scores.write(predictions / SCORED, scores.scored(rows))
    counts: dict[str, float] = json.loads((predictions / FACTS).read_text())
    counts["test_cases"] = len(rows)
    counts["distinct_hypotheses"] = len({row["hypothesis"] for row in rows})
    counts["empty_hypotheses"] = sum(not row["hypothesis"] for row in rows)
    return Scores(
        metrics=scores.metrics(rows, params),
        nulls={null: scores.metrics(tables[null], params) for null in NULLS},
        counts=counts,
        notes=(
            f"raw text against raw text, normaliser {NORMALISER}; references are never cut",
            "bleu_1..4: pycocoevalcap, no smoothing; sacrebleu: its own tokeniser 13a, case kept, "
            "smoothing exp; rouge_l_f1: rouge-score; rouge_l_beta: pycocoevalcap, recall weighs "
            "1.2; cider_d: pycocoevalcap",
            "text_only has had half of the model's steps: those before it saw an image",
            "model, random_encoder and text_only write from a diagnosis of the same findings that "
            "keyword_* score: penalty and threshold from leave-one-out on train, and validation",
            "random_encoder stays frozen, whatever the mode",
            "keyword_* come from a rule-based keyword labeller, fitted to the phantom's wording: "
            "not a trained labeller, not clinical efficacy; keyword_ct_rate_*: CT-RATE's 18 labels "
            "only, doubtful findings count as asserted",
            f"CRG: asserting every cell or none gives {CRG_FLOOR:.3f}, its floor; all wrong 0.2",
            "CIDEr-D takes document frequencies from these references: of little meaning on a "
            "small test set",
            "BLEU and ROUGE-L carry no claim on templated reports: read them beside the nulls",
        ),
    )


def draw(predictions: Path, params: CtrgReport) -> "dict[str, Figure]":
    """``reports``: slices, both texts with what they share, findings in agreement."""
    shown = []
    with np.load(predictions / SLICES, allow_pickle=False) as slices:
        for row in scores.scored(scores.read(predictions / f"{MODEL}.jsonl")):
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
