"""What retrieval scores, of embeddings and the table of cases; both ways, and volume to volume.

The table has a row per reconstruction: ``patient_id``, ``scan_id``, ``primary`` (the one of its
scan that is in the gallery), and ``label_*`` columns. Shapes: V reconstructions, T scans (one
text each), E width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mg3d.metrics.bootstrap import Estimate, estimate, mean_estimate, unavailable
from mg3d.metrics.retrieval import (
    average_precision_at,
    chance_recall_at,
    first_items,
    label_overlap,
    label_overlap_at,
    mean_rank_percentile,
    mean_reciprocal_rank,
    median_rank,
    ranks,
    reranked,
)
from mg3d.params import Finetune

KS = (1, 5, 10, 50, 100)
LABEL = "label_"
DIRECTIONS = ("text_to_volume", "volume_to_text")


def metrics(
    image: np.ndarray,
    text: np.ndarray,
    table: pd.DataFrame,
    params: Finetune,
    pairs_only: bool = False,
) -> dict[str, Estimate]:
    """All metrics of embeddings image [V, E] and text [T, E]; ``pairs_only`` leaves out those that
    ignore the pairing."""
    chosen = table["primary"].to_numpy(bool)
    patients = table["patient_id"][chosen].tolist()
    primary = image[chosen]
    found = _of_pairs(text @ primary.T, patients, params)
    if pairs_only:
        return found
    found |= _of_siblings(text @ image.T, table, params)
    return found | _of_volumes(primary @ primary.T, labels(table[chosen]), patients, params)


def reranked_metrics(
    image: np.ndarray,
    text: np.ndarray,
    pair: np.ndarray,
    top: int,
    table: pd.DataFrame,
    params: Finetune,
) -> dict[str, Estimate]:
    """Recall and MRR when each query's first ``top`` are put in the order of ``pair`` [T, T]."""
    chosen = table["primary"].to_numpy(bool)
    patients = table["patient_id"][chosen].tolist()
    similarity = text @ image[chosen].T
    own = np.eye(len(text), dtype=bool)
    found = {}
    for direction, coarse, fine in (
        (DIRECTIONS[0], similarity, pair),
        (DIRECTIONS[1], similarity.T, pair.T),
    ):
        rank = ranks(reranked(coarse, fine, first_items(coarse, own, top)), own)
        for name, estimated in _of_ranks(rank, len(text), patients, params).items():
            found[f"reranked_{direction}_{name}"] = estimated
    return found


def without_reranking(reason: str) -> dict[str, Estimate]:
    """The same recalls where no pair could be scored."""
    names = [f"reranked_{direction}_recall_at_{k}" for direction in DIRECTIONS for k in KS]
    return dict.fromkeys(names, unavailable(reason))


def chance(table: pd.DataFrame) -> dict[str, Estimate]:
    """Expected metrics of a random ranking; exact, so without an interval."""
    chosen = table["primary"].to_numpy(bool)
    gallery = int(chosen.sum())
    one = np.ones(gallery)
    ks = [k for k in KS if k < gallery]
    values = {f"recall_at_{k}": chance_recall_at(k, one, gallery) for k in ks}
    for direction in DIRECTIONS:
        values |= {f"{direction}_recall_at_{k}": values[f"recall_at_{k}"] for k in ks}
        values[f"{direction}_median_rank"] = (gallery + 1) / 2
        values[f"{direction}_mrr"] = float((1 / np.arange(1, gallery + 1)).mean())
        values[f"{direction}_mean_rank_percentile"] = 0.5
    num_siblings = table.groupby("scan_id").size()[table["scan_id"][chosen]].to_numpy()
    for k in ks:
        values[f"siblings_text_to_volume_recall_at_{k}"] = chance_recall_at(
            k, num_siblings, len(table)
        )
        values[f"siblings_volume_to_text_recall_at_{k}"] = chance_recall_at(
            k, np.ones(len(table)), gallery
        )
    known = labels(table[chosen])
    if known.shape[1] and not np.isnan(known).any():
        allowed = _other_patients(table["patient_id"][chosen].tolist())
        if allowed.any():
            overlap = np.where(allowed, label_overlap(known), np.nan)
            expected = float(np.nanmean(np.nanmean(overlap, axis=1)))
            values |= {f"label_overlap_at_{k}": expected for k in ks}
    return {name: Estimate(value) for name, value in values.items()}


def counts(image: np.ndarray, text: np.ndarray, table: pd.DataFrame) -> dict[str, float]:
    """Size of the gallery, siblings, repeated texts, ties, and how far embeddings have collapsed
    (mean cosine of distinct ones: near 1)."""
    primary = image[table["primary"].to_numpy(bool)]
    gallery = len(text)
    similarity = text @ primary.T
    right = similarity.diagonal()
    tied = [(matrix == right[:, None]).sum(axis=1) > 1 for matrix in (similarity, similarity.T)]
    return {
        "gallery": gallery,
        "reconstructions": len(table),
        "distinct_reports": int(table["text"].nunique()),
        **{f"tied_{d}": int(t.sum()) for d, t in zip(DIRECTIONS, tied, strict=True)},
        "volume_embedding_mean_cosine": _mean_cosine(primary),
        "text_embedding_mean_cosine": _mean_cosine(text),
        **{f"chance_recall_at_{k}": k / gallery for k in KS if k < gallery},
    }


def labels(table: pd.DataFrame) -> np.ndarray:
    """[N, L]; L is 0 without labels."""
    return table[[name for name in table.columns if name.startswith(LABEL)]].to_numpy(float)


def _of_pairs(
    similarity: np.ndarray, patients: Sequence[str], params: Finetune
) -> dict[str, Estimate]:
    """One reconstruction per scan, so each query has one right answer: similarity [T, T]."""
    gallery = len(similarity)
    own = np.eye(gallery, dtype=bool)
    rank = dict(zip(DIRECTIONS, (ranks(similarity, own), ranks(similarity.T, own)), strict=True))
    found: dict[str, Estimate] = {}
    for k in KS:
        both = np.mean([rows <= k for rows in rank.values()], axis=0)
        found[f"recall_at_{k}"] = _recall(both, k, gallery, patients, params)
    for direction, of_query in rank.items():
        for name, estimated in _of_ranks(of_query, gallery, patients, params).items():
            found[f"{direction}_{name}"] = estimated
    return found


def _of_ranks(
    rank: np.ndarray, gallery: int, patients: Sequence[str], params: Finetune
) -> dict[str, Estimate]:
    functions = {
        "median_rank": median_rank,
        "mrr": mean_reciprocal_rank,
        "mean_rank_percentile": lambda rows: mean_rank_percentile(rows, gallery),
    }
    return {
        **{f"recall_at_{k}": _recall(rank <= k, k, gallery, patients, params) for k in KS},
        **{
            name: estimate(
                lambda rows, f=function: f(rank[rows]),  # type: ignore[misc]
                patients,
                undefined="a gallery of one",
                **_resampling(params),
            )
            for name, function in functions.items()
        },
    }


def _of_siblings(
    similarity: np.ndarray, table: pd.DataFrame, params: Finetune
) -> dict[str, Estimate]:
    """All reconstructions are in the gallery and are queries; any of the scan's counts: [T, V]."""
    scans = table["scan_id"].to_numpy()
    chosen = table["primary"].to_numpy(bool)
    sibling = scans[chosen][:, None] == scans[None, :]
    found = {}
    for direction, matrix, relevant, who in (
        (DIRECTIONS[0], similarity, sibling, table["patient_id"][chosen].tolist()),
        (DIRECTIONS[1], similarity.T, sibling.T, table["patient_id"].tolist()),
    ):
        rank = ranks(matrix, relevant)
        for k in KS:
            found[f"siblings_{direction}_recall_at_{k}"] = (
                _recall(rank <= k, k, matrix.shape[1], who, params)
                if len(table) > chosen.sum()
                else unavailable("every scan has one reconstruction")
            )
    return found


def _of_volumes(
    similarity: np.ndarray, known: np.ndarray, patients: Sequence[str], params: Finetune
) -> dict[str, Estimate]:
    """Volume to volume [T, T] by what their label sets [T, L] share; the patient's are left out."""
    found: dict[str, Estimate] = {}
    for k in KS:
        names = (f"label_overlap_at_{k}", f"same_labels_map_at_{k}")
        if known.shape[1] == 0 or np.isnan(known).any():
            found |= dict.fromkeys(names, unavailable("not every volume has labels"))
            continue
        allowed, overlap = _other_patients(patients), label_overlap(known)
        few = f"fewer than {k} other patients"
        values = (
            (label_overlap_at(similarity, overlap, allowed, k), few),
            (
                average_precision_at(similarity, overlap == 1, allowed, k),
                f"{few}, or no other with the same labels",
            ),
        )
        for name, (of_query, undefined) in zip(names, values, strict=True):
            found[name] = mean_estimate(
                of_query, patients, undefined=undefined, **_resampling(params)
            )
    return found


def _recall(
    hits: np.ndarray, k: int, gallery: int, patients: Sequence[str], params: Finetune
) -> Estimate:
    """Mean of hits; unavailable where it could not be missed."""
    if k >= gallery:
        return unavailable(f"a gallery of {gallery}: recall at {k} would be 1")
    return mean_estimate(hits, patients, **_resampling(params))


def _resampling(params: Finetune) -> dict[str, Any]:
    return {"num_resamples": params.num_bootstrap, "seed": params.seed}


def _other_patients(patients: Sequence[str]) -> np.ndarray:
    names = np.asarray(patients)
    return names[:, None] != names[None, :]


def _mean_cosine(rows: np.ndarray) -> float:
    if len(rows) < 2:
        return 1.0
    total = float((rows @ rows.T).sum()) - float((rows**2).sum())
    return total / (len(rows) * (len(rows) - 1))
