"""Metrics of segmentation from mask files in native space: class by class, and their means.

Prediction folder: ``<system>/<case_id>.nii.gz`` and ``reference/`` likewise, uint8 class numbers;
``cases.csv`` with case_id, patient_id, phase ("" where a task has none).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd

from mg3d.metrics.bootstrap import Estimate, estimate, mean_estimate, unavailable
from mg3d.metrics.lesions import LesionCounts, count_lesions, lesion_f1
from mg3d.metrics.segmentation import Overlap, overlap
from mg3d.params import Finetune

REFERENCE, CASES = "reference", "cases.csv"


@dataclass(frozen=True)
class Classes:
    """What the mask values 1, 2, ... mean and how they are judged.

    ``tolerance_mm`` is NSD's. ``lesions``: count connected components too. ``phases`` names
    (end-diastole, end-systole); the ``ventricles`` then have an ejection fraction.
    """

    names: tuple[str, ...]
    tolerance_mm: float
    lesions: bool = False
    phases: tuple[str, str] | None = None
    ventricles: tuple[str, ...] = ()

    @property
    def nsd(self) -> str:
        """Name of the metric."""
        return f"nsd_{self.tolerance_mm:g}mm"


@dataclass(frozen=True)
class SystemMasks:
    """One system's masks against the reference: ``overlaps`` [cases][classes], ``lesions``."""

    overlaps: list[list[Overlap]]
    lesions: list[LesionCounts]

    def of(self, field: str) -> np.ndarray:
        """A field of the overlaps, float [cases, classes]."""
        return np.array([[getattr(o, field) for o in row] for row in self.overlaps], float)


def read_cases(predictions: Path) -> pd.DataFrame:
    """The table of test cases, ids as text, an absent phase as ""."""
    return pd.read_csv(predictions / CASES, dtype=str, keep_default_na=False)


def read_pair(predictions: Path, system: str, case_id: str) -> tuple[np.ndarray, np.ndarray, Any]:
    """Predicted and true class numbers (X, Y, Z), and the spacing in mm of the same axes.

    Raises ValueError naming a missing prediction.
    """
    path = predictions / system / f"{case_id}.nii.gz"
    if not path.exists():
        raise ValueError(f"no prediction {path}: every test case must have one")
    image: Any = nibabel.load(str(path))
    spacing_mm = tuple(float(size) for size in image.header.get_zooms()[:3])
    reference: Any = nibabel.load(str(predictions / REFERENCE / path.name))
    return np.asarray(image.dataobj), np.asarray(reference.dataobj), spacing_mm


def read_masks(predictions: Path, system: str, case_ids: Sequence[str], of: Classes) -> SystemMasks:
    """Compare every case. Raises ValueError naming a missing prediction."""
    overlaps, lesions = [], []
    for case_id in case_ids:
        predicted, reference, spacing_mm = read_pair(predictions, system, case_id)
        overlaps.append(
            [
                overlap(predicted == number, reference == number, spacing_mm, of.tolerance_mm)
                for number in range(1, 1 + len(of.names))
            ]
        )
        if of.lesions:
            lesions.append(count_lesions(predicted > 0, reference > 0))
    return SystemMasks(overlaps, lesions)


def volumes_ml(
    predictions: Path, system: str, case_ids: Sequence[str], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true volumes, float [cases, classes], without measuring any distance."""
    pairs = []
    for case_id in case_ids:
        predicted, reference, spacing_mm = read_pair(predictions, system, case_id)
        voxel_ml = float(np.prod(spacing_mm)) / 1000
        pairs.append(
            [
                np.bincount(mask.ravel(), minlength=1 + num_classes)[1 : 1 + num_classes] * voxel_ml
                for mask in (predicted, reference)
            ]
        )
    both = np.array(pairs, float).reshape(-1, 2, num_classes)
    return both[:, 0], both[:, 1]


def ejection_fractions(
    volume_ml: np.ndarray, table: pd.DataFrame, phases: tuple[str, str]
) -> pd.Series:
    """Percent by patient, from the volumes [cases] at end-diastole and end-systole.

    Patients without both phases are left out. An empty ventricle at end-diastole counts as 0 %:
    the prediction that finds nothing sees no ejection.
    """
    frame = table.assign(volume=volume_ml)
    first, last = (frame[frame["phase"] == phase] for phase in phases)
    both = first.merge(last, on="patient_id", suffixes=("_ed", "_es"))
    diastole, systole = both["volume_ed"].to_numpy(), both["volume_es"].to_numpy()
    stroke = np.divide(
        diastole - systole, diastole, out=np.zeros(len(both)), where=np.asarray(diastole > 0)
    )
    return pd.Series(100 * stroke, index=both["patient_id"].to_numpy())


def metrics(
    masks: SystemMasks, table: pd.DataFrame, of: Classes, params: Finetune
) -> dict[str, Estimate]:
    """Every metric with its interval by patient.

    Of one class: dice, hd95_mm, nsd, pooled_dice, volume_bias_ml, false_positive_ml. Of several:
    the mean over the classes that a case has, then each class as ``<class>_<metric>``, by phase as
    ``<class>_<phase>_dice`` and ``_hd_mm``, ejection fractions as ``<class>_ef_error_points``.
    """
    patients = table["patient_id"].tolist()
    common: Any = {"num_resamples": params.num_bootstrap, "seed": params.seed}
    absent = "no test case with a lesion" if len(of.names) == 1 else "no test case with the class"

    def mean(values: np.ndarray, reason: str = absent) -> Estimate:
        return mean_estimate(values, patients, undefined=reason, **common)

    dice, volume, reference = (masks.of(f) for f in ("dice", "volume_ml", "reference_volume_ml"))
    both = volume + reference
    shared = np.nan_to_num(dice * both)

    def pooled(column: int) -> Callable[[np.ndarray], float]:
        def statistic(rows: np.ndarray) -> float:
            total = float(both[rows, column].sum())
            return float(shared[rows, column].sum()) / total if total else float("nan")

        return statistic

    def mean_pooled(rows: np.ndarray) -> float:
        return float(np.mean([pooled(column)(rows) for column in range(len(of.names))]))

    distances = {"hd95_mm": "hd95_mm", of.nsd: "nsd"}
    found = {
        "dice": mean(_mean_of_classes(dice)),
        **{name: mean(_mean_of_classes(masks.of(field))) for name, field in distances.items()},
        "pooled_dice": estimate(mean_pooled, patients, undefined=absent, **common),
    }
    if len(of.names) == 1:
        found["volume_bias_ml"] = mean((volume - reference)[:, 0])
    else:
        for column, name in enumerate(of.names):
            found[f"{name}_dice"] = mean(dice[:, column])
            for metric, field in distances.items():
                found[f"{name}_{metric}"] = mean(masks.of(field)[:, column])
            found[f"{name}_pooled_dice"] = estimate(
                pooled(column), patients, undefined=absent, **common
            )
            found[f"{name}_volume_bias_ml"] = mean((volume - reference)[:, column])
    empty = np.where(reference == 0, volume, np.nan)
    found["false_positive_ml"] = mean(
        _sum_of_classes(empty), "no test case with an empty reference"
    )
    for phase in of.phases or ():
        here = (table["phase"] == phase).to_numpy()
        for column, name in enumerate(of.names):
            for metric in ("dice", "hd_mm"):
                values = np.where(here, masks.of(metric)[:, column], np.nan)
                found[f"{name}_{phase}_{metric}"] = mean(values)
    if of.phases:
        for name in of.ventricles:
            column = of.names.index(name)
            found |= _ejection(
                name, volume[:, column], reference[:, column], table, of.phases, common
            )
    if of.lesions:
        counts = np.array([(c.found, c.false, c.missed) for c in masks.lesions], float)

        def f1(rows: np.ndarray) -> float:
            return lesion_f1(*counts[rows].sum(axis=0))

        found["lesion_f1"] = estimate(
            f1, patients, undefined="no lesion, true or predicted", **common
        )
    return found


def _ejection(
    name: str,
    volume: np.ndarray,
    reference: np.ndarray,
    table: pd.DataFrame,
    phases: tuple[str, str],
    common: dict[str, Any],
) -> dict[str, Estimate]:
    """Mean absolute error and bias of the ejection fraction, in points of percent."""
    predicted = ejection_fractions(volume, table, phases)
    true = ejection_fractions(reference, table, phases)
    keys = f"{name}_ef_error_points", f"{name}_ef_bias_points"
    if not len(true):
        return dict.fromkeys(keys, unavailable("no test patient with both phases"))
    difference = (predicted - true).to_numpy()
    patients = [str(patient) for patient in true.index]
    values = (np.abs(difference), difference)
    return {
        key: mean_estimate(value, patients, **common)
        for key, value in zip(keys, values, strict=True)
    }


def _mean_of_classes(values: np.ndarray) -> np.ndarray:
    """Mean over the defined classes of each case; NaN without any."""
    defined = np.isfinite(values)
    total = np.where(defined, values, 0).sum(axis=1)
    count = defined.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _sum_of_classes(values: np.ndarray) -> np.ndarray:
    """Sum over the defined classes of each case; NaN without any."""
    return np.where(np.isfinite(values).any(axis=1), np.nansum(values, axis=1), np.nan)
