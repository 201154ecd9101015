"""What report generation scores: rows of case_id, patient_id, reference, hypothesis."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg3d import paths
from mg3d.finetuning.task import Case
from mg3d.metrics import text
from mg3d.metrics.bootstrap import Estimate, estimate, mean_estimate, unavailable
from mg3d.metrics.ct_rate_findings import ct_rate_matrix, panel_crg
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


def rows_of(cases: Sequence[Case], hypotheses: Sequence[str]) -> list[dict[str, Any]]:
    """A row per case."""
    return [
        {
            "case_id": case.case_id,
            "patient_id": case.patient_id,
            "reference": case.text,
            "hypothesis": hypothesis,
        }
        for case, hypothesis in zip(cases, hypotheses, strict=True)
    ]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON Lines."""
    with paths.atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of JSON Lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def scored(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
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


def metrics(rows: Sequence[dict[str, Any]], params: CtrgReport) -> dict[str, Estimate]:
    """Corpus scores by name, with intervals by patient."""
    hypotheses = [row["hypothesis"] for row in rows]
    references = [row["reference"] for row in rows]
    patients = [row["patient_id"] for row in rows]
    common: Any = {"num_resamples": params.num_bootstrap, "seed": params.seed}
    statistics = text.bleu_statistics(hypotheses, references)
    raw_statistics = text.sacrebleu_statistics(hypotheses, references)
    predicted, true = finding_matrix(hypotheses), finding_matrix(references)
    panel = ct_rate_matrix(hypotheses), ct_rate_matrix(references)
    nothing = "no finding is asserted"
    of_cells = {
        "keyword_micro_f1": (micro_f1, predicted, true),
        "keyword_macro_f1": (macro_f1, predicted, true),
        "keyword_micro_precision": (micro_precision, predicted, true),
        "keyword_micro_recall": (micro_recall, predicted, true),
        "keyword_ct_rate_micro_f1": (micro_f1, *panel),
        "keyword_ct_rate_macro_f1": (macro_f1, *panel),
        "keyword_ct_rate_crg": (panel_crg, *panel),
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
                lambda chosen, f=function, p=called, r=known: f(p[chosen], r[chosen]),  # type: ignore[misc]
                patients,
                undefined=nothing,
                **common,
            )
            for name, (function, called, known) in of_cells.items()
        },
        "keyword_example_f1": mean_estimate(
            example_f1(predicted, true), patients, undefined=nothing, **common
        ),
        "meteor": unavailable("METEOR needs Java or WordNet, neither of which is a dependency"),
        "clinical_f1": unavailable("needs the weights of a trained CT labeller (RadBERT, RadEval)"),
    }
