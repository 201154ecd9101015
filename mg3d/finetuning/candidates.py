"""Kind: is this place in the scan a lesion? Cubes around candidates, scored by FROC.

A case is a scan with its candidates, read once for all its cubes, which are cut around the
candidates in the task's isotropic spacing and window. Training is balanced: every positive is
seen in ``num_positive_views`` (shifted by up to ``max_shift_mm``, turned at random), a scan's
negatives ``num_negatives_per_scan`` times at random, and positives repeat until there are as many.
Test scans are read one after the other and all their candidates are scored.

Nulls: ``prevalence``, one probability for all candidates; ``random_encoder``, the same probe on an
untrained encoder. Modes: ``frozen``, ``finetune``, ``scratch``.
"""

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from mg3d import paths
from mg3d.data.hounsfield import problem
from mg3d.data.volumes import apply_window
from mg3d.device import best
from mg3d.figures import classification as figures
from mg3d.finetuning import store
from mg3d.finetuning.cubes import IsotropicScan
from mg3d.finetuning.embeddings import encoder_sha256
from mg3d.finetuning.encoders import random_encoder, starting_encoder
from mg3d.finetuning.fitted import keep_fitted
from mg3d.finetuning.images import load_image, source_sha256
from mg3d.finetuning.probe import Classifier, fit_probe
from mg3d.finetuning.task import Case, OnMetrics, Scores, Split
from mg3d.ledger import Ledger, Reason
from mg3d.metrics import froc
from mg3d.metrics.bootstrap import Estimate, estimates, unavailable
from mg3d.metrics.classification import auroc, average_precision
from mg3d.params import CandidateFinetune

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "candidates"
MODEL, NULLS = "model", ("prevalence", "random_encoder")
LESIONS, SCANS = "lesions.csv", "scans.csv"
EMBED_BATCH = 16
MIN_LESIONS = 3
LABEL = "lesion"
CUBE = "cube"
CUBE_SETTINGS = ("cube_voxels", "cube_spacing_mm", "cube_window_hu")
METRICS = ("cpm", *(f"sensitivity_at_{p:g}" for p in froc.OPERATING_POINTS))


@dataclass(frozen=True)
class Scan(Case):
    """A case with places in it, in LPS mm (x, y, z) as ITK counts them.

    ``candidates`` [N, 4]: a place, and whether it is a lesion (0, 1); ``lesions`` and ``excluded``
    [M, 4]: a place and a diameter. Excluded findings count neither for nor against.
    """

    candidates: tuple[tuple[float, float, float, float], ...] = ()
    lesions: tuple[tuple[float, float, float, float], ...] = ()
    excluded: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True)
class View:
    """One cube for training: where it is cut, and a turn of the cube (axes, flips)."""

    case: Case  # labels {"lesion": 0 or 1}, with an id of its own
    place_mm: tuple[float, float, float]
    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def turned(self, cube: np.ndarray) -> np.ndarray:
        """The cube under the view's symmetry."""
        turned = cube.transpose(self.axes)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


def views(scan: Scan, params: CandidateFinetune) -> list[View]:
    """What training sees of a scan; depends on the seed and the scan's id only."""
    name = f"{params.seed}/{scan.case_id}".encode()
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8]))
    positives = [c for c in scan.candidates if c[3]]
    negatives = [c for c in scan.candidates if not c[3]]
    chosen = generator.permutation(len(negatives))[: params.num_negatives_per_scan]
    seen = [(place, shift) for place in positives for shift in range(params.num_positive_views)]
    seen += [(negatives[index], 0) for index in chosen.tolist()]
    found = []
    for number, (place, shift) in enumerate(seen):
        moved = np.array(place[:3])
        if shift:  # the first view of a positive is centred
            moved = moved + generator.uniform(-1, 1, 3) * params.max_shift_mm / math.sqrt(3)
        case = replace(_cube_case(scan, number), labels={LABEL: int(place[3])})
        x, y, z = moved.tolist()
        i, j, k = generator.permutation(3).tolist()
        flips = generator.integers(0, 2, 3).astype(bool).tolist()
        found.append(View(case, (x, y, z), (i, j, k), (flips[0], flips[1], flips[2])))
    return found


def balanced(cases: Sequence[Case]) -> list[Case]:
    """``cases`` with the rarer class repeated in order until both are equally frequent.

    Raises ValueError if there is one class only.
    """
    positive = [case for case in cases if case.labels[LABEL]]
    negative = [case for case in cases if not case.labels[LABEL]]
    if not positive or not negative:
        raise ValueError(
            f"{len(positive)} positive and {len(negative)} negative candidates for training: "
            "both are needed"
        )
    size = max(len(positive), len(negative))
    return [rows[n % len(rows)] for rows in (positive, negative) for n in range(size)]


def predict(
    split: Split,
    checkpoint: Path,
    predictions: Path,
    params: CandidateFinetune,
    ledger: Ledger,
    on_metrics: OnMetrics,
    prefix: str,
) -> dict[str, Any]:
    """Write ``<system>.csv`` with all candidates of the test scans, ``lesions.csv`` and
    ``scans.csv`` (see `Kind.predict`).

    Raises ValueError for a mode other than frozen, finetune and scratch.
    """
    if params.mode not in ("frozen", "finetune", "scratch"):
        raise ValueError(f"{NAME} has no mode {params.mode}: use frozen, finetune or scratch")
    encoder, contract, provenance = starting_encoder(checkpoint, params)
    untrained = random_encoder(checkpoint, params.seed + 1)
    encoders = {MODEL: encoder, "random_encoder": untrained}
    frozen = params.mode == "frozen"
    with tempfile.TemporaryDirectory(prefix="mg3d-cubes-") as name:
        cubes = Path(name)
        known: dict[str, list[Case]] = {"train": [], "validation": []}
        features: dict[str, dict[str, Tensor]] = {MODEL: {}, "random_encoder": {}}
        for part in known:
            seen = {scan.case_id: views(_scan(scan), params) for scan in split[part]}
            embedded = _embedded(
                split[part], seen, encoders, params, ledger, None if frozen else cubes
            )
            split[part] = [scan for scan in split[part] if scan.case_id in embedded]
            for scan in split[part]:
                cases = [view.case for view in seen[scan.case_id]]
                known[part] = [*known[part], *cases]
                for system, rows in zip(encoders, embedded[scan.case_id], strict=True):
                    features[system] |= dict(
                        zip((case.case_id for case in cases), rows, strict=True)
                    )

        def read(cases: Sequence[Case]) -> Tensor:
            stack = [np.load(cubes / f"{case.case_id}.npy", allow_pickle=False) for case in cases]
            return _windowed(np.stack(stack), params)

        train = balanced(known["train"])
        classifiers: dict[str, Classifier] = {}
        for system, model, trained in (
            (MODEL, encoder, not frozen),
            ("random_encoder", untrained, False),
        ):
            classifiers[system] = fit_probe(
                features[system],
                train,
                known["validation"],
                _labels,
                1,
                F.binary_cross_entropy_with_logits,
                params,
                on_metrics if system == MODEL else lambda step, metrics: None,
                prefix if system == MODEL else f"{prefix}/{system}",
                *((model, read) if trained else ()),
            )
    keep_fitted(
        predictions, classifiers[MODEL], task=prefix, kind=NAME, params=params,
        contract_digest=contract.digest(), labels=[LABEL],
    )  # fmt: skip
    shares = [candidate[3] for scan in split["train"] for candidate in _scan(scan).candidates]
    prevalence = (sum(shares) + 1) / (len(shares) + 2)
    _write_test(split, predictions, params, ledger, encoders, classifiers, prevalence)
    return provenance


def _write_test(
    split: Split,
    predictions: Path,
    params: CandidateFinetune,
    ledger: Ledger,
    encoders: Mapping[str, Any],
    classifiers: Mapping[str, Classifier],
    prevalence: float,
) -> None:
    """Score every candidate of the test scans, a scan at a time, and write the files."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in (*encoders, "prevalence")}
    lesions: list[dict[str, Any]] = []
    found_in = _found(split["test"], params, ledger, encoders, classifiers)
    kept = [_scan(case) for case in split["test"] if case.case_id in found_in]
    for scan in kept:
        found = found_in[scan.case_id]
        places = scan.candidates
        found["prevalence"] = [prevalence] * len(places)
        for system, probabilities in found.items():
            rows[system] += [
                {"case_id": scan.case_id, "x": x, "y": y, "z": z, LABEL: int(label), "p": p}
                for (x, y, z, label), p in zip(scan.candidates, probabilities, strict=True)
            ]
        for excluded, places_of in ((0, scan.lesions), (1, scan.excluded)):
            lesions += [
                {"case_id": scan.case_id, "x": x, "y": y, "z": z, "mm": mm, "excluded": excluded}
                for x, y, z, mm in places_of
            ]
    split["test"] = list(kept)
    columns = ["case_id", "x", "y", "z", LABEL, "p"]
    for system, of_system in rows.items():
        _csv(predictions / f"{system}.csv", pd.DataFrame(of_system, columns=columns))
    columns = ["case_id", "x", "y", "z", "mm", "excluded"]
    _csv(predictions / LESIONS, pd.DataFrame(lesions, columns=columns))
    who = [(case.case_id, case.patient_id) for case in kept]
    _csv(predictions / SCANS, pd.DataFrame(who, columns=["case_id", "patient_id"]))


def score(predictions: Path, params: CandidateFinetune) -> Scores:
    """CPM over seven operating points, the sensitivity at each, AUROC and average precision of the
    candidates."""
    scans = pd.read_csv(predictions / SCANS)
    lesions = pd.read_csv(predictions / LESIONS)
    tables = {name: pd.read_csv(predictions / f"{name}.csv") for name in (MODEL, *NULLS)}
    found = {name: _detections(table, lesions, scans) for name, table in tables.items()}
    hits = np.concatenate([scan.nodules for scan in found[MODEL]] or [np.zeros(0)])
    wrong = sum(len(scan.false_positives) for scan in found[MODEL])
    ceiling = float(np.isfinite(hits).mean()) if len(hits) else float("nan")
    counts: dict[str, float] = {
        "test_scans": len(scans),
        "candidates": len(tables[MODEL]),
        "lesions": len(hits),
        "lesions_with_a_candidate": int(np.isfinite(hits).sum()),
        "excluded_findings": int(lesions["excluded"].sum()),
        "false_candidates_per_scan": wrong / max(1, len(scans)),
    }
    return Scores(
        metrics=_metrics(found[MODEL], tables[MODEL], scans, params),
        nulls={name: _metrics(found[name], tables[name], scans, params) for name in NULLS},
        counts=counts,
        notes=(
            f"the candidate list finds {int(np.isfinite(hits).sum())} of {len(hits)} lesions: no "
            f"sensitivity can exceed {ceiling:.3f}",
            "CPM: mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4, 8 false positives per scan",
            "a candidate within a lesion's radius finds it; within an excluded finding it counts "
            "neither for nor against",
            "intervals resample patients among the scans",
        ),
    )


def draw(predictions: Path, params: CandidateFinetune) -> "dict[str, Figure]":
    """``froc``; ``roc``, ``pr`` and ``calibration`` of the candidates."""
    scans, lesions = pd.read_csv(predictions / SCANS), pd.read_csv(predictions / LESIONS)
    tables = {name: pd.read_csv(predictions / f"{name}.csv") for name in (MODEL, *NULLS)}
    of_system, ceiling = {}, 0.0
    for name, table in tables.items():
        wrong, hits = _pooled(_detections(table, lesions, scans))
        of_system[name] = froc.curve(wrong, hits, max(1, len(scans)))
        ceiling = float(np.isfinite(hits).mean()) if len(hits) else 0.0
    curves = {
        name: (table[LABEL].to_numpy(), table["p"].to_numpy()) for name, table in tables.items()
    }
    return {
        "froc": figures.froc(of_system, froc.OPERATING_POINTS, ceiling),
        "roc": figures.roc(curves, "candidates"),
        "pr": figures.precision_recall(curves, "candidates"),
        "calibration": figures.calibration(curves, "candidates"),
    }


def _metrics(
    found: Sequence[froc.Detections],
    table: pd.DataFrame,
    scans: pd.DataFrame,
    params: CandidateFinetune,
) -> dict[str, Estimate]:
    names = (*METRICS, "auroc", "average_precision")
    num_lesions = sum(len(scan.nodules) for scan in found)
    if num_lesions < MIN_LESIONS:
        reason = f"{num_lesions} lesions in the test scans: {MIN_LESIONS} are needed"
        return dict.fromkeys(names, unavailable(reason))
    grouped = table.groupby("case_id").indices
    rows_of = [grouped.get(case_id, np.zeros(0, int)) for case_id in scans["case_id"]]
    label, probability = table[LABEL].to_numpy(), table["p"].to_numpy()

    def statistics(chosen: np.ndarray) -> np.ndarray:
        wrong, hits = _pooled([found[index] for index in chosen])
        rows = np.concatenate([rows_of[index] for index in chosen])
        at = (
            froc.sensitivities(wrong, hits, len(chosen))
            if len(hits)
            else np.full(len(froc.OPERATING_POINTS), np.nan)
        )
        y, p = label[rows], probability[rows]
        return np.array([at.mean(), *at, auroc(y, p), average_precision(y, p)])

    values = estimates(
        statistics,
        scans["patient_id"].tolist(),
        num_statistics=len(names),
        num_resamples=params.num_bootstrap,
        seed=params.seed,
        undefined="candidates of one class only",
    )
    return dict(zip(names, values, strict=True))


def _detections(
    table: pd.DataFrame, lesions: pd.DataFrame, scans: pd.DataFrame
) -> list[froc.Detections]:
    """Per scan of ``scans``, in its order."""
    of_scan = dict(list(table.groupby("case_id")))
    balls_of_scan = dict(list(lesions.groupby("case_id")))
    found = []
    for case_id in scans["case_id"]:
        candidates = of_scan.get(case_id, table.iloc[:0])
        balls = balls_of_scan.get(case_id, lesions.iloc[:0])
        real, excluded = (
            balls.loc[balls["excluded"] == flag, ["x", "y", "z", "mm"]].to_numpy(float)
            for flag in (0, 1)
        )
        points = candidates[["x", "y", "z"]].to_numpy(float)
        found.append(froc.match(points, candidates["p"].to_numpy(float), real, excluded))
    return found


def _pooled(found: Sequence[froc.Detections]) -> tuple[np.ndarray, np.ndarray]:
    """False positives and lesions of all scans."""
    empty = [np.zeros(0)]
    return (
        np.concatenate([scan.false_positives for scan in found] or empty),
        np.concatenate([scan.nodules for scan in found] or empty),
    )


def _embedded(
    scans: Sequence[Case],
    seen: Mapping[str, Sequence[View]],
    encoders: Mapping[str, Any],
    params: CandidateFinetune,
    ledger: Ledger,
    cubes: Path | None,
) -> dict[str, Tensor]:
    """Features [encoders, views, C] of what is ``seen`` of each scan, by its id; without those that
    cannot be read. With ``cubes`` every scan is read, and its cubes are written there."""
    by_id = {scan.case_id: scan for scan in scans}
    keeping = store.is_keeping() and cubes is None
    who = [encoder_sha256(encoder) for encoder in encoders.values()] if keeping else []
    settings = params.model_dump(mode="json", include=set(CUBE_SETTINGS))
    device = best().type

    def name_of(case_id: str) -> str | None:
        source = source_sha256(by_id[case_id]) if keeping else None
        if source is None:
            return None
        places = [[view.place_mm, view.axes, view.flips] for view in seen[case_id]]
        return store.name_of(
            cubes=source, places=places, settings=settings, encoders=who, device=device
        )

    def make(ids: Sequence[str]) -> list[np.ndarray | None]:
        found: list[np.ndarray | None] = []
        for case_id in ids:
            image = _opened(by_id[case_id], params, ledger)
            if image is None:
                found.append(None)
                continue
            chosen = seen[case_id]
            stack = [view.turned(image.cube(view.place_mm)) for view in chosen]
            if cubes is not None:
                for view, cube in zip(chosen, stack, strict=True):
                    np.save(cubes / f"{view.case.case_id}.npy", cube)
            rows = [_features(encoder, stack, params) for encoder in encoders.values()]
            found.append(torch.stack(rows).numpy())
        return found

    embedded = store.shared(list(by_id), name_of, make)
    return {case_id: torch.from_numpy(rows) for case_id, rows in embedded}


@torch.inference_mode()
def _found(
    scans: Sequence[Case],
    params: CandidateFinetune,
    ledger: Ledger,
    encoders: Mapping[str, Any],
    classifiers: Mapping[str, Classifier],
) -> dict[str, dict[str, list[float]]]:
    """Probability of each candidate, by scan and system; scans that cannot be read are left out.

    An encoder that has learnt reads cubes, a frozen one's features may be known already.
    """
    learnt = [name for name in encoders if classifiers[name].encoder is not None]
    found: dict[str, dict[str, list[float]]] = {}
    if not learnt:
        seen = {
            scan.case_id: [View(scan, place[:3]) for place in _scan(scan).candidates]
            for scan in scans
        }
        for case_id, features in _embedded(scans, seen, encoders, params, ledger, None).items():
            found[case_id] = {
                name: classifiers[name].logits(rows)[:, 0].sigmoid().tolist()
                for name, rows in zip(encoders, features, strict=True)
            }
        return found
    for scan in map(_scan, scans):
        image = _opened(scan, params, ledger)
        if image is None:
            continue
        found[scan.case_id] = {name: [] for name in encoders}
        for start in range(0, len(scan.candidates), EMBED_BATCH):
            places = scan.candidates[start : start + EMBED_BATCH]
            batch = [image.cube(place[:3]) for place in places]
            for name, encoder in encoders.items():
                inputs = _windowed(np.stack(batch), params)
                if name not in learnt:
                    inputs = _features(encoder, batch, params)
                logits = classifiers[name].logits(inputs)[:, 0]
                found[scan.case_id][name] += logits.sigmoid().tolist()
    return found


def _opened(case: Case, params: CandidateFinetune, ledger: Ledger) -> IsotropicScan | None:
    """The scan, or None after saying in the ledger why it cannot be read."""
    try:
        volume, affine = load_image(case)
    except Exception as error:  # any reader's error means: this file cannot be read
        ledger.quarantine(case.case_id, Reason.UNREADABLE, type(error).__name__)
        return None
    found = problem(volume) if volume.ndim == 3 else (Reason.WRONG_SHAPE, "not three axes")
    if found is not None:
        ledger.quarantine(case.case_id, *found)
        return None
    return IsotropicScan(volume, affine, params)


def _scan(case: Case) -> Scan:
    assert isinstance(case, Scan), f"{case.case_id} has no candidates"
    return case


def _cube_case(scan: Scan, number: int) -> Case:
    return Case(f"{scan.case_id}-{CUBE}{number}", scan.patient_id, scan.image)


def _labels(cases: Sequence[Case]) -> Tensor:
    """[B, 1]."""
    return torch.tensor([[float(case.labels[LABEL] or 0)] for case in cases])


def _windowed(cubes: np.ndarray, params: CandidateFinetune) -> Tensor:
    """int16 [B, D, H, W] -> float32 [B, 1, D, H, W] in [0, 1]."""
    return torch.from_numpy(apply_window(cubes, params.cube_window_hu)[:, None])


@torch.no_grad()
def _features(encoder: Any, cubes: Sequence[np.ndarray], params: CandidateFinetune) -> Tensor:
    """[N, C] of N cubes, on the CPU."""
    encoder.eval()
    device = next(encoder.parameters()).device
    rows = [torch.zeros(0, encoder.channels)]
    for start in range(0, len(cubes), EMBED_BATCH):
        batch = _windowed(np.stack(cubes[start : start + EMBED_BATCH]), params)
        rows.append(encoder.features(batch.to(device)).cpu())
    return torch.cat(rows)


def _csv(path: Path, table: pd.DataFrame) -> None:
    with paths.atomic_write(path) as temporary:
        table.to_csv(temporary, index=False)
