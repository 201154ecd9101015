"""Kind: which volume belongs to this report, which report to this volume; embed once, then rank.

``zero_shot`` uses the dual encoder as pre-trained; ``frozen`` trains one linear map on top of each
side with the training pairs, ``finetune`` the dual encoder itself (`dual_tuning`).

Primary: one reconstruction per scan, so each query has one right
answer. Second (``siblings_*``): all reconstructions, any of the scan's counts. Volume to volume
(``label_overlap_*``, ``same_labels_map_*``): the query's whole patient is left out. With
``rerank_top`` the first of each ranking also meet the query in the fusion layers (``reranked_*``).
Ties are pessimistic (`metrics.retrieval`). Nulls: ``chance`` (K/N, computed), ``shuffled_pairs``
(the same embeddings, every pair wrong), ``random_encoder`` (an untrained model of the same
architecture; where the mode trains, with linear maps as in ``frozen``).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mg3d import paths
from mg3d.data.pairs import Collate
from mg3d.device import best
from mg3d.figures import retrieval as figures
from mg3d.finetuning import ranking, sentence_attention
from mg3d.finetuning.dual_encoding import encode
from mg3d.finetuning.dual_tuning import fit_dual_encoder, fit_projections
from mg3d.finetuning.fitted import keep_fitted
from mg3d.finetuning.images import packed_cases
from mg3d.finetuning.reranking import rerank
from mg3d.finetuning.task import Case, OnMetrics, Scores, Split
from mg3d.ledger import Ledger, Reason
from mg3d.metrics.retrieval import label_overlap, ranks
from mg3d.params import CtRateRetrieval
from mg3d.training.checkpoint import load_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mg3d.models.mg3d import MG3D

NAME = "retrieval"
MODEL, RANDOM = "model", "random_encoder"
CASES, SLICES = "cases.csv", "slices.npz"
RERANKED, COST = "reranked.npz", "reranking.json"
NUM_QUERIES, NUM_FOUND = 5, 5


def predict(
    split: Split,
    checkpoint: Path,
    predictions: Path,
    params: CtRateRetrieval,
    ledger: Ledger,
    on_metrics: OnMetrics,
    prefix: str,
) -> dict[str, Any]:
    """Write embeddings of the test cases, ``<system>.npz`` with image [V, E] for every
    reconstruction and text [T, E] for every scan, ``cases.csv``, and what the second look and the
    figures need (see `Kind.predict`).

    Raises ValueError for another mode than these three, and for a checkpoint without a dual
    encoder.
    """
    if params.mode not in params.MODES:
        raise ValueError(f"retrieval has no mode {params.mode}: use zero_shot, frozen or finetune")
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
    models = {MODEL: loaded.model.to(best()), RANDOM: random_model.to(best())}
    with packed_cases(split, loaded.contract, ledger) as volumes:
        projections = {}
        temperature = loaded.objective_params.temperature
        if params.mode != "zero_shot":
            train, validation = (_primary(split[part]) for part in ("train", "validation"))
            if not train:
                raise ValueError(
                    f"{prefix}: mode {params.mode} needs training pairs and there are none; add "
                    "dataset/train_fixed, or use zero_shot"
                )
            pairs = [*train, *validation]
            for system, model in models.items():
                if system == MODEL and params.mode == "finetune":
                    known = encode(model, pairs, volumes, collate, {c.case_id for c in pairs})
                    fit_dual_encoder(
                        model, known.sentences, volumes, train, validation, params, temperature,
                        on_metrics, prefix,
                    )  # fmt: skip
                else:
                    encoded = encode(model, pairs, volumes, collate)
                    name = prefix if system == MODEL else f"{prefix}/{system}"
                    projections[system] = fit_projections(
                        encoded, train, validation, params, temperature, on_metrics, name
                    )
        test = split["test"]
        scans = _primary(test)
        meeting = {case.case_id for case in scans} if loaded.model.fuses_sentences else set()
        for system, model in models.items():
            encoded = encode(model, test, volumes, collate, meeting if system == MODEL else ())
            image = np.stack([encoded.image[case.case_id] for case in test])
            text = np.stack([encoded.text[case.scan_id] for case in scans])
            if system in projections:
                image, text = projections[system].applied(image, text)
            np.savez(predictions / f"{system}.npz", image=image, text=text)
            if system == MODEL:
                keep_fitted(
                    predictions, projections.get(MODEL), task=prefix, kind=NAME, params=params,
                    contract_digest=loaded.contract.digest(),
                    tensors={"gallery": torch.from_numpy(image)} | _tuned(model, params),
                    case_ids=[case.case_id for case in test],
                )  # fmt: skip
            if system == MODEL and meeting:
                tokens = [encoded.tokens[case.case_id] for case in scans]
                sentences = [encoded.sentences[case.case_id] for case in scans]
                sentence_attention.write(predictions, model, scans, tokens, sentences, volumes)
                if params.rerank_top and model.matches:
                    primary = image[[case.case_id in meeting for case in test]]
                    _rerank(predictions, model, tokens, sentences, text @ primary.T, params)
        table = _table(test, {case.case_id for case in scans})
        np.savez_compressed(
            predictions / SLICES, middle=np.stack([volumes.middle_slice(case) for case in test])
        )
    with paths.atomic_write(predictions / CASES) as temporary:
        table.to_csv(temporary, index=False)
    return {
        "contract_digest": loaded.contract.digest(),
        "encoder_coverage": loaded.coverage.as_json(),
    }


def _tuned(model: "MG3D", params: CtRateRetrieval) -> dict[str, Tensor]:
    """Weights of a dual encoder that learnt, under ``model.``; the text encoder never does."""
    if params.mode != "finetune":
        return {}
    state = model.state_dict()
    return {f"model.{k}": t for k, t in state.items() if not k.startswith("text_encoder.")}


def score(predictions: Path, params: CtRateRetrieval) -> Scores:
    """Recall, median rank, MRR and mean rank percentile, both ways, and what label sets share."""
    table = pd.read_csv(predictions / CASES)
    image, text = _read(predictions, MODEL)
    gallery = len(text)
    random_image, random_text = _read(predictions, RANDOM)
    shift = np.roll(np.arange(gallery), 1)
    metrics = ranking.metrics(image, text, table, params)
    counts = ranking.counts(image, text, table)
    tied = ", ".join(str(counts[f"tied_{direction}"]) for direction in ranking.DIRECTIONS)
    notes = [
        f"gallery of {gallery} scans, one reconstruction each; chance of recall at 5 is "
        f"5/{gallery}; not comparable across gallery sizes",
        f"equal similarity ranks an irrelevant item first (pessimistic); {tied} queries (reports, "
        "volumes) have their right item tied",
        f"siblings_*: all {len(table)} reconstructions, any of the scan's counts",
        "random_encoder: untrained; where the mode trains, with linear maps as in frozen",
        "label overlap and same-labels MAP leave out the query's whole patient; two empty label "
        "sets overlap 1",
        "intervals resample patients among the queries; the gallery is fixed",
    ]
    if (predictions / COST).exists():
        cost = json.loads((predictions / COST).read_text())
        with np.load(predictions / RERANKED, allow_pickle=False) as file:
            pair = file["pair"]
        top = cost["rerank_top"]
        metrics |= ranking.reranked_metrics(image, text, pair, top, table, params)
        counts |= cost
        notes.append(
            f"reranked_*: the first {top} of each ranking in the order of the fusion layers; it is "
            f"no index: {cost['rerank_pair_forwards']} passes for {2 * gallery} queries"
        )
    elif params.rerank_top:
        reason = "the model has no DFA: it was pre-trained with objective.dfa_weight 0"
        metrics |= ranking.without_reranking(reason)
    return Scores(
        metrics=metrics,
        nulls={
            "chance": ranking.chance(table),
            "shuffled_pairs": ranking.metrics(image, text[shift], table, params, pairs_only=True),
            RANDOM: ranking.metrics(random_image, random_text, table, params),
        },
        counts=counts,
        notes=tuple(notes),
    )


def draw(predictions: Path, params: CtRateRetrieval) -> "dict[str, Figure]":
    """``contact_sheet`` of reports and ``contact_sheet_volumes`` of volumes that ask, from the best
    to the worst rank; ``similarity``, and, where the model fuses sentences,
    ``sentence_attention``."""
    table = pd.read_csv(predictions / CASES)
    image, text = _read(predictions, MODEL)
    chosen = table["primary"].to_numpy(bool)
    with np.load(predictions / SLICES, allow_pickle=False) as file:
        middle = file["middle"][chosen]
    rows = table[chosen].reset_index(drop=True)
    labels = ranking.labels(rows)
    similarity = text @ image[chosen].T
    overlap = label_overlap(labels) if len(labels[0]) else None
    own = np.eye(len(rows), dtype=bool)

    def captions(query: int, found: np.ndarray, matrix: np.ndarray) -> list[str]:
        return [
            f"{rows['patient_id'][item]}\n{matrix[query, item]:.2f}"
            + (f", labels {overlap[query, item]:.2f}" if overlap is not None else "")
            for item in found
        ]

    reports = [
        figures.Query(
            text=rows["text"][query],
            rank=rank,
            slices=[middle[item] for item in found],
            captions=captions(query, found, similarity),
            correct=[bool(item == query) for item in found],
        )
        for query, rank, found in _shown(similarity)
    ]
    volumes = [
        figures.VolumeQuery(
            plane=middle[query],
            rank=rank,
            texts=[rows["text"][item] for item in found],
            captions=captions(query, found, similarity.T),
            correct=[bool(item == query) for item in found],
        )
        for query, rank, found in _shown(similarity.T)
    ]
    first = f"first {NUM_FOUND} of {len(rows)}; the right one is green"
    return {
        "contact_sheet": figures.contact_sheet(reports, NUM_FOUND, f"report to volume: {first}"),
        "contact_sheet_volumes": figures.volume_contact_sheet(
            volumes, NUM_FOUND, f"volume to report: {first}"
        ),
        "similarity": figures.similarity_histogram(similarity[own], similarity[~own]),
        **sentence_attention.draw(predictions),
    }


def _shown(similarity: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """Queries from the best to the worst rank, evenly: index, rank, and what comes first."""
    rank = ranks(similarity, np.eye(len(similarity), dtype=bool))
    by_rank = np.argsort(rank, kind="stable")
    shown = by_rank[np.linspace(0, len(rank) - 1, min(NUM_QUERIES, len(rank))).astype(int)]
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :NUM_FOUND]
    return [(int(query), int(rank[query]), order[query]) for query in shown]


def _rerank(
    predictions: Path,
    model: "MG3D",
    tokens: Sequence[Tensor],
    sentences: Sequence[Tensor],
    similarity: np.ndarray,
    params: CtRateRetrieval,
) -> None:
    """Write the scores of pairs that met, and what they cost."""
    assert params.rerank_top is not None
    again = rerank(model, tokens, sentences, similarity, params.rerank_top)
    cost = {
        "rerank_top": params.rerank_top,
        "rerank_pair_forwards": again.pair_forwards,
        "rerank_seconds": round(again.seconds, 3),
        "rerank_seconds_per_query": round(again.seconds / (2 * len(similarity)), 5),
    }
    np.savez_compressed(predictions / RERANKED, pair=again.pair)
    with paths.atomic_write(predictions / COST) as temporary:
        temporary.write_text(json.dumps(cost, indent=2) + "\n")


def _primary(cases: Sequence[Case]) -> list[Case]:
    """Of each scan the reconstruction with the first id."""
    first: dict[str, str] = {}
    for case in cases:
        first[case.scan_id] = min(case.case_id, first.get(case.scan_id, case.case_id))
    return [case for case in cases if first[case.scan_id] == case.case_id]


def _table(cases: Sequence[Case], primary: set[str]) -> pd.DataFrame:
    """A row per reconstruction, as `ranking` reads it."""
    names = sorted({name for case in cases for name in case.labels})
    return pd.DataFrame(
        {
            "case_id": [case.case_id for case in cases],
            "patient_id": [case.patient_id for case in cases],
            "scan_id": [case.scan_id for case in cases],
            "primary": [case.case_id in primary for case in cases],
            "text": [case.text for case in cases],
            **{ranking.LABEL + name: [case.labels.get(name) for case in cases] for name in names},
        }
    )


def _read(predictions: Path, system: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(predictions / f"{system}.npz", allow_pickle=False) as file:
        return file["image"], file["text"]
