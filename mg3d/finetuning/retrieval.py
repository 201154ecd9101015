"""Kind: which volume belongs to this report, which report to this volume; embed once, then rank.

``zero_shot`` uses the dual encoder as pre-trained; ``frozen`` trains one linear map on top of each
side with the training pairs. Primary: one reconstruction per scan, so each query has one right
answer. Second (``siblings_*``): all reconstructions, any of the scan's counts. ``label_overlap_*``:
volume to volume, the query's whole patient left out. Ties are pessimistic (`metrics.retrieval`).
Nulls: ``chance`` (K/N, computed), ``shuffled_pairs`` (the same embeddings, every pair wrong),
``random_encoder`` (an untrained model of the same architecture).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mg3d import paths
from mg3d.data.pairs import Collate, Pair
from mg3d.data.report_text import normalise, unwrap
from mg3d.data.sentences import split_sentences
from mg3d.figures import retrieval as figures
from mg3d.finetuning.fitting import fit_head
from mg3d.finetuning.images import PackedCases, packed_cases
from mg3d.finetuning.task import Case, OnMetrics, Scores, Split
from mg3d.ledger import Ledger, Reason
from mg3d.metrics.bootstrap import Estimate, estimate, mean_estimate, unavailable
from mg3d.metrics.retrieval import (
    chance_recall_at,
    label_overlap,
    label_overlap_at,
    mean_rank_percentile,
    mean_reciprocal_rank,
    median_rank,
    ranks,
    recall_at,
)
from mg3d.objectives.contrastive import info_nce
from mg3d.params import Finetune
from mg3d.training.checkpoint import load_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mg3d.models.mg3d import MG3D

NAME = "retrieval"
MODEL, RANDOM = "model", "random_encoder"
CASES, SLICES = "cases.csv", "slices.npz"
KS = (1, 5, 10)
LABEL = "label_"
EMBED_BATCH = 4
NUM_QUERIES, NUM_FOUND = 5, 5


class Projections(nn.Module):
    """One linear map per side on frozen embeddings, both starting as the identity."""

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.image = nn.Linear(width, width, bias=False)
        self.text = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.image.weight)
        nn.init.eye_(self.text.weight)
        self.temperature = temperature

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """(image [B, E], text [B, E]) -> symmetric InfoNCE."""
        image, text = batch
        return {"total": info_nce(self.image(image), self.text(text), self.temperature)}


def predict(
    split: Split,
    checkpoint: Path,
    predictions: Path,
    params: Finetune,
    ledger: Ledger,
    on_metrics: OnMetrics,
    prefix: str,
) -> dict[str, Any]:
    """Write embeddings of the test cases, ``<system>.npz`` with image [V, E] for every
    reconstruction and text [T, E] for every scan, and ``cases.csv`` (see `Kind.predict`).

    Raises ValueError for another mode than ``zero_shot`` and ``frozen``, and for a checkpoint
    without a dual encoder.
    """
    if params.mode not in ("zero_shot", "frozen"):
        raise ValueError(f"retrieval has no mode {params.mode}: use zero_shot or frozen")
    if params.mode == "zero_shot":
        for part in ("train", "validation"):
            for case in split[part]:
                ledger.quarantine(case.case_id, Reason.NOT_IN_SPLIT, "zero_shot reads test only")
            split[part] = []
    from mg3d.models.build import build
    from mg3d.models.text import load_tokenizer

    loaded = load_model(checkpoint)
    collate = Collate(
        load_tokenizer(loaded.model_params.text.name_or_folder),
        loaded.model_params.text.max_tokens,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed + 1)
        random_model = build(loaded.model_params, loaded.objective_params).eval()
    with packed_cases(split, loaded.contract, ledger) as volumes:
        for system, model in ((MODEL, loaded.model), (RANDOM, random_model)):
            everything = [case for cases in split.values() for case in cases]
            image, text = _embed(model, everything, volumes, collate)
            if params.mode == "frozen":
                temperature = loaded.objective_params.temperature
                quiet = system == RANDOM
                _project(image, text, split, params, temperature, on_metrics, prefix, quiet)
            test = split["test"]
            one_per_scan = [case for case in test if _is_primary(case, test)]
            np.savez(
                predictions / f"{system}.npz",
                image=np.stack([image[case.case_id] for case in test]),
                text=np.stack([text[case.scan_id] for case in one_per_scan]),
            )
        primary = [_is_primary(case, test) for case in test]
        table = pd.DataFrame(
            {
                "case_id": [case.case_id for case in test],
                "patient_id": [case.patient_id for case in test],
                "scan_id": [case.scan_id for case in test],
                "primary": primary,
                "text": [case.text for case in test],
                **{
                    LABEL + name: [case.labels.get(name) for case in test]
                    for name in sorted({name for case in test for name in case.labels})
                },
            }
        )
        np.savez_compressed(
            predictions / SLICES, middle=np.stack([volumes.middle_slice(case) for case in test])
        )
    with paths.atomic_write(predictions / CASES) as temporary:
        table.to_csv(temporary, index=False)
    return {
        "contract_digest": loaded.contract.digest(),
        "encoder_coverage": loaded.coverage.as_json(),
    }


def score(predictions: Path, params: Finetune) -> Scores:
    """Recall at 1, 5 and 10, median rank, MRR and mean rank percentile, both ways."""
    table = pd.read_csv(predictions / CASES)
    image, text = _read(predictions, MODEL)
    gallery = len(text)
    primary = image[table["primary"].to_numpy(bool)]
    random_image, random_text = _read(predictions, RANDOM)
    shift = np.roll(np.arange(gallery), 1)
    counts: dict[str, float] = {
        "gallery": gallery,
        "reconstructions": len(table),
        "distinct_reports": int(table["text"].nunique()),
        "volume_embedding_mean_cosine": _mean_cosine(primary),
        "text_embedding_mean_cosine": _mean_cosine(text),
    }
    counts |= {f"chance_recall_at_{k}": min(1.0, k / gallery) for k in KS}
    return Scores(
        metrics=_metrics(image, text, table, params),
        nulls={
            "chance": _chance(table),
            "shuffled_pairs": _metrics(image, text[shift], table, params, pairs_only=True),
            RANDOM: _metrics(random_image, random_text, table, params),
        },
        counts=counts,
        notes=(
            f"gallery of {gallery} scans, one reconstruction each; chance of recall at 5 is "
            f"5/{gallery}; not comparable across gallery sizes",
            "equal similarity ranks an irrelevant item first (pessimistic)",
            "label overlap leaves out the query's whole patient; two empty label sets overlap 1",
            "intervals resample patients among the queries; the gallery is fixed",
        ),
    )


def draw(predictions: Path, params: Finetune) -> "dict[str, Figure]":
    """``contact_sheet`` of queries from the best to the worst rank, ``similarity``."""
    table = pd.read_csv(predictions / CASES)
    image, text = _read(predictions, MODEL)
    chosen = table["primary"].to_numpy(bool)
    with np.load(predictions / SLICES, allow_pickle=False) as file:
        middle = file["middle"][chosen]
    rows = table[chosen].reset_index(drop=True)
    similarity = text @ image[chosen].T
    rank = ranks(similarity, np.eye(len(rows), dtype=bool))
    overlap = label_overlap(_labels(rows)) if len(_labels(rows)[0]) else None
    by_rank = np.argsort(rank, kind="stable")
    shown = by_rank[np.linspace(0, len(rows) - 1, min(NUM_QUERIES, len(rows))).astype(int)]
    queries = []
    for query in shown:
        found = np.argsort(-similarity[query], kind="stable")[:NUM_FOUND]
        queries.append(
            figures.Query(
                text=rows["text"][query],
                rank=int(rank[query]),
                slices=[middle[item] for item in found],
                captions=[
                    f"{rows['patient_id'][item]}\n{similarity[query, item]:.2f}"
                    + (f", labels {overlap[query, item]:.2f}" if overlap is not None else "")
                    for item in found
                ],
                correct=[bool(item == query) for item in found],
            )
        )
    own = np.eye(len(rows), dtype=bool)
    title = f"report to volume: first {NUM_FOUND} of {len(rows)}; the right one is green"
    return {
        "contact_sheet": figures.contact_sheet(queries, NUM_FOUND, title),
        "similarity": figures.similarity_histogram(similarity[own], similarity[~own]),
    }


@torch.no_grad()
def _embed(
    model: "MG3D", cases: Sequence[Case], volumes: PackedCases, collate: Collate
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """L2-normalised image [E] by case id and text [E] by scan id; each volume and report once."""
    image: dict[str, np.ndarray] = {}
    text: dict[str, np.ndarray] = {}
    for start in range(0, len(cases), EMBED_BATCH):
        chosen = cases[start : start + EMBED_BATCH]
        pairs = [
            Pair(case.case_id, volume, _sentences(case.text))
            for case, volume in zip(chosen, volumes.batch(chosen), strict=True)
        ]
        batch = collate(pairs)
        image_rows = model.encode_image(batch.volume).numpy()
        image |= {case.case_id: row for case, row in zip(chosen, image_rows, strict=True)}
        if not all(case.scan_id in text for case in chosen):
            text_rows = model.encode_text(
                batch.input_ids, batch.attention_mask, batch.sentence_index, batch.sentence_mask
            ).numpy()
            for case, row in zip(chosen, text_rows, strict=True):
                text.setdefault(case.scan_id, row)
    return image, text


def _sentences(text: str) -> list[str]:
    """Cut as the reports of pre-training are: lines joined where a line's width broke them."""
    text = unwrap(normalise(text))
    return [text[start:end] for start, end in split_sentences(text)] or [text]


def _project(
    image: dict[str, np.ndarray],
    text: dict[str, np.ndarray],
    split: Split,
    params: Finetune,
    temperature: float,
    on_metrics: OnMetrics,
    prefix: str,
    quiet: bool,
) -> None:
    """Train `Projections` on the training pairs, one reconstruction each; apply in place."""
    projections = Projections(len(next(iter(text.values()))), temperature)

    def make_batch(cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        return (
            torch.from_numpy(np.stack([image[case.case_id] for case in cases])),
            torch.from_numpy(np.stack([text[case.scan_id] for case in cases])),
        )

    train, validation = (
        [case for case in split[part] if _is_primary(case, split[part])]
        for part in ("train", "validation")
    )
    report = (lambda step, metrics: None) if quiet else on_metrics
    name = f"{prefix}/{RANDOM}" if quiet else prefix
    fit_head(projections, train, validation, make_batch, params, report, name)
    with torch.no_grad():
        for rows, linear in ((image, projections.image), (text, projections.text)):
            for key, row in rows.items():
                mapped = nn.functional.normalize(linear(torch.from_numpy(row)), dim=-1)
                rows[key] = mapped.numpy()


def _is_primary(case: Case, cases: Sequence[Case]) -> bool:
    """Whether ``case`` is its scan's reconstruction with the first id."""
    return case.case_id == min(c.case_id for c in cases if c.scan_id == case.scan_id)


def _read(predictions: Path, system: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(predictions / f"{system}.npz", allow_pickle=False) as file:
        return file["image"], file["text"]


def _labels(table: pd.DataFrame) -> np.ndarray:
    """[N, L]; L is 0 without labels."""
    return table[[name for name in table.columns if name.startswith(LABEL)]].to_numpy(float)


def _mean_cosine(rows: np.ndarray) -> float:
    """Mean cosine of distinct rows: near 1, the embeddings have collapsed."""
    if len(rows) < 2:
        return 1.0
    total = float((rows @ rows.T).sum()) - float((rows**2).sum())
    return total / (len(rows) * (len(rows) - 1))


def _metrics(
    image: np.ndarray,
    text: np.ndarray,
    table: pd.DataFrame,
    params: Finetune,
    pairs_only: bool = False,
) -> dict[str, Estimate]:
    """All metrics of one system; ``pairs_only`` leaves out those that ignore the pairing."""
    common: Any = {"num_resamples": params.num_bootstrap, "seed": params.seed}
    chosen = table["primary"].to_numpy(bool)
    primary = image[chosen]
    scans = table["scan_id"].to_numpy()
    scan_of_text = scans[chosen]
    patients = table["patient_id"][chosen].tolist()
    own = np.eye(len(text), dtype=bool)
    similarity = text @ primary.T
    rank = {
        "text_to_volume": ranks(similarity, own),
        "volume_to_text": ranks(similarity.T, own),
    }
    metrics: dict[str, Estimate] = {}
    for k in KS:
        both = np.mean([rows <= k for rows in rank.values()], axis=0)
        metrics[f"recall_at_{k}"] = mean_estimate(both, patients, **common)
    for direction, of_query in rank.items():
        for name, function in _rank_metrics(len(text)).items():
            metrics[f"{direction}_{name}"] = estimate(
                lambda rows, f=function, r=of_query: f(r[rows]),  # type: ignore[misc]
                patients,
                undefined="a gallery of one",
                **common,
            )
    if pairs_only:
        return metrics

    sibling = scan_of_text[:, None] == scans[None, :]
    everything = text @ image.T
    all_patients = table["patient_id"].tolist()
    for direction, matrix, relevant, who in (
        ("text_to_volume", everything, sibling, patients),
        ("volume_to_text", everything.T, sibling.T, all_patients),
    ):
        for k in KS:
            name = f"siblings_{direction}_recall_at_{k}"
            metrics[name] = (
                mean_estimate(ranks(matrix, relevant) <= k, who, **common)
                if len(table) > len(text)
                else unavailable("every scan has one reconstruction")
            )
    labels = _labels(table[chosen])
    for k in KS:
        if labels.shape[1] == 0 or np.isnan(labels).any():
            metrics[f"label_overlap_at_{k}"] = unavailable("not every volume has labels")
            continue
        nearest = label_overlap_at(
            primary @ primary.T, label_overlap(labels), _other_patients(patients), k
        )
        metrics[f"label_overlap_at_{k}"] = mean_estimate(
            nearest, patients, undefined=f"fewer than {k} other patients", **common
        )
    return metrics


def _rank_metrics(gallery: int) -> dict[str, Any]:
    """Functions of ranks [Q] by name."""
    return {
        **{f"recall_at_{k}": lambda rank, k=k: recall_at(rank, k) for k in KS},
        "median_rank": median_rank,
        "mrr": mean_reciprocal_rank,
        "mean_rank_percentile": lambda rank: mean_rank_percentile(rank, gallery),
    }


def _other_patients(patients: Sequence[str]) -> np.ndarray:
    names = np.asarray(patients)
    return names[:, None] != names[None, :]


def _chance(table: pd.DataFrame) -> dict[str, Estimate]:
    """Expected metrics of a random ranking; exact, so without an interval."""
    chosen = table["primary"].to_numpy(bool)
    gallery = int(chosen.sum())
    one = np.ones(gallery)
    values = {f"recall_at_{k}": chance_recall_at(k, one, gallery) for k in KS}
    for direction in ("text_to_volume", "volume_to_text"):
        values |= {f"{direction}_recall_at_{k}": values[f"recall_at_{k}"] for k in KS}
        values[f"{direction}_median_rank"] = (gallery + 1) / 2
        values[f"{direction}_mrr"] = float((1 / np.arange(1, gallery + 1)).mean())
        values[f"{direction}_mean_rank_percentile"] = 0.5
    num_siblings = table.groupby("scan_id").size()[table["scan_id"][chosen]].to_numpy()
    for k in KS:
        values[f"siblings_text_to_volume_recall_at_{k}"] = chance_recall_at(
            k, num_siblings, len(table)
        )
        values[f"siblings_volume_to_text_recall_at_{k}"] = chance_recall_at(
            k, np.ones(len(table)), gallery
        )
    labels = _labels(table[chosen])
    if labels.shape[1] and not np.isnan(labels).any():
        allowed = _other_patients(table["patient_id"][chosen].tolist())
        if allowed.any():
            overlap = np.where(allowed, label_overlap(labels), np.nan)
            expected = float(np.nanmean(np.nanmean(overlap, axis=1)))
            values |= {f"label_overlap_at_{k}": expected for k in KS}
    return {name: Estimate(value) for name, value in values.items()}
