"""Kind: masks of one or several classes, predicted window by window, scored in native space.

A case is resampled to the task's spacing (the contract's by default) over its whole extent, crops
train a UNETR decoder on the encoder's maps, a sliding window predicts, and the probabilities are
brought back to the voxels of the image's own file before they become a mask. Nulls: ``empty_mask``,
nothing anywhere; ``training_prior``, one mask for every patient: where training masks are frequent,
in coordinates relative to the volume, cut for each class where training Dice is best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import zoom

from mg3d import paths
from mg3d.data.nifti import RefusedNifti
from mg3d.data.volumes import apply_window
from mg3d.figures import segmentation as figures
from mg3d.finetuning.encoders import starting_encoder
from mg3d.finetuning.fitted import keep_fitted
from mg3d.finetuning.fitting import fit_head
from mg3d.finetuning.images import load_image, problem
from mg3d.finetuning.mask_scores import (
    CASES,
    REFERENCE,
    Classes,
    ejection_fractions,
    metrics,
    read_cases,
    read_masks,
    read_pair,
    volumes_ml,
)
from mg3d.finetuning.network_grid import NetworkGrid, Spacing, network_grid, to_file_order
from mg3d.finetuning.task import Case, OnMetrics, Scores, Split
from mg3d.finetuning.unetr import UNETR, DiceCrossEntropy, window_by_window
from mg3d.ledger import Ledger, Reason
from mg3d.metrics.agreement import bland_altman
from mg3d.params import SegmentationTask
from mg3d.training.order import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL, NULLS = "model", ("empty_mask", "training_prior")
SLICES = "slices.npz"
UNIT_GRID = (32, 32, 32)
NUM_OVERLAYS = 8
MAX_DEVIATIONS = 20  # z-scores beyond are clipped


@dataclass(frozen=True)
class Loaded:
    """A case on the network's grid: ``volume`` float32 and ``classes`` uint8, both (D, H, W)."""

    volume: np.ndarray
    classes: np.ndarray
    grid: NetworkGrid


@dataclass(frozen=True)
class Segmentation:
    """The kind, for the classes of one task.

    ``mirror``: crops are mirrored from left to right half the time, which a lung bears and a heart,
    whose right ventricle is known by its side, does not.
    """

    classes: Classes
    mirror: bool = True
    NAME = "segmentation"

    def predict(
        self,
        split: Split,
        checkpoint: Path,
        predictions: Path,
        params: SegmentationTask,
        ledger: Ledger,
        on_metrics: OnMetrics,
        prefix: str,
    ) -> dict[str, Any]:
        """Write ``<system>/<case_id>.nii.gz`` in native space, ``reference/`` likewise, and the
        slices that the overlays show (see `Kind.predict`).

        Raises ValueError for the mode ``zero_shot``.
        """
        if params.mode == "zero_shot":
            raise ValueError("segmentation has no zero_shot mode: use frozen, finetune or scratch")
        num_classes = len(self.classes.names)
        encoder, contract, provenance = starting_encoder(checkpoint, params)
        spacing_mm = params.spacing_mm or contract.spacing_mm
        loaded = {
            name: load_cases(cases, spacing_mm, params.window_hu, num_classes, ledger)
            for name, cases in split.items()
        }
        for name, cases in split.items():
            split[name] = [case for case in cases if case.case_id in loaded[name]]
        train = loaded["train"] | loaded["validation"]
        drawn = generator(params.seed, "crops")

        def make_batch(cases: Sequence[Case]) -> tuple[torch.Tensor, torch.Tensor]:
            crops = [
                _crop(train[case.case_id], params.crop_voxels, drawn, self.mirror) for case in cases
            ]
            volumes, masks = (np.stack(part)[:, None] for part in zip(*crops, strict=True))
            return torch.from_numpy(volumes), torch.from_numpy(masks.astype(np.float32))

        torch.manual_seed(params.seed)
        network = UNETR(encoder, params.mode != "frozen", num_classes)
        fit_head(
            DiceCrossEntropy(network),
            split["train"],
            split["validation"],
            make_batch,
            params,
            on_metrics,
            prefix,
        )
        keep_fitted(
            predictions, network, task=prefix, kind=self.NAME, params=params,
            contract_digest=contract.digest(), labels=list(self.classes.names),
            spacing_mm=spacing_mm,
        )  # fmt: skip
        prior = _prior([loaded["train"][case.case_id] for case in split["train"]], num_classes)
        slices: Any = {}
        for case in split["test"]:
            at = loaded["test"][case.case_id]
            probabilities = window_by_window(network, at.volume, params)
            native: Any = nibabel.load(str(case.image))
            masks = {
                MODEL: at.grid.classes_to_image(probabilities),
                "empty_mask": np.zeros(at.grid.shape_image, np.uint8),
                "training_prior": at.grid.classes_to_image(_prior_on(prior, at.grid)),
            }
            for system, mask in masks.items():
                on_file = to_file_order(mask, native.affine)
                _save_mask(predictions / system / f"{case.case_id}.nii.gz", on_file, native)
            reference = _read_mask(case.mask)
            _save_mask(predictions / REFERENCE / f"{case.case_id}.nii.gz", reference, native)
            slices[case.case_id] = _slice(case, reference, native.affine, params.window_hu)
        pd.DataFrame(
            {
                "case_id": [case.case_id for case in split["test"]],
                "patient_id": [case.patient_id for case in split["test"]],
                "phase": [self._phase(case) for case in split["test"]],
            }
        ).to_csv(predictions / CASES, index=False)
        np.savez_compressed(predictions / SLICES, **slices)
        padding = [at.grid.padding_fraction for part in loaded.values() for at in part.values()]
        return provenance | {
            "padding_fraction": round(float(np.mean(padding)), 4) if padding else None
        }

    def score(self, predictions: Path, params: SegmentationTask) -> Scores:
        """Dice, HD95, NSD, pooled Dice and volumes by class; empty references apart."""
        table = read_cases(predictions)
        ids = table["case_id"].tolist()
        masks = {
            system: read_masks(predictions, system, ids, self.classes) for system in (MODEL, *NULLS)
        }
        volume, true = (masks[MODEL].of(field) for field in ("volume_ml", "reference_volume_ml"))
        counts: dict[str, float] = {
            "test_cases": len(table),
            "empty_references": int((true.sum(axis=1) == 0).sum()),
            "empty_predictions": int((volume.sum(axis=1) == 0).sum()),
        }
        for column, name in enumerate(self.classes.names if len(table) > 1 else ()):
            key = "volume_limit" if len(self.classes.names) == 1 else f"{name}_volume_limit"
            _, counts[f"{key}_low_ml"], counts[f"{key}_high_ml"] = bland_altman(
                volume[:, column], true[:, column]
            )
        if self.classes.lesions:
            for field in ("found", "false", "missed"):
                counts[f"lesions_{field}"] = sum(getattr(c, field) for c in masks[MODEL].lesions)
        return Scores(
            metrics=metrics(masks[MODEL], table, self.classes, params),
            nulls={null: metrics(masks[null], table, self.classes, params) for null in NULLS},
            counts=counts,
            notes=self._notes(),
        )

    def draw(self, predictions: Path, params: SegmentationTask) -> "dict[str, Figure]":
        """``overlays`` of the largest test cases, ``bland_altman`` by class, and with phases the
        ejection fractions, ``ejection_fraction``."""
        table = read_cases(predictions)
        ids = table["case_id"].tolist()
        volume, true = volumes_ml(predictions, MODEL, ids, len(self.classes.names))
        drawn = {"overlays": self._overlays(predictions, ids, volume.sum(axis=1), true.sum(axis=1))}
        for column, name in enumerate(self.classes.names):
            measured, reference = volume[:, column], true[:, column]
            bias, low, high = bland_altman(measured, reference)
            key = "bland_altman" if len(self.classes.names) == 1 else f"bland_altman_{name}"
            drawn[key] = figures.bland_altman(measured, reference, bias, (low, high))
        if self.classes.phases:
            fractions = {}
            for name in self.classes.ventricles:
                column = self.classes.names.index(name)
                measured, reference = (
                    ejection_fractions(of[:, column], table, self.classes.phases).to_numpy()
                    for of in (volume, true)
                )
                fractions[name] = measured, reference
            drawn["ejection_fraction"] = figures.agreement(fractions, "ejection fraction", "%")
        return drawn

    def _overlays(
        self, predictions: Path, ids: Sequence[str], volume: np.ndarray, true: np.ndarray
    ) -> "Figure":
        planes, predicted, reference, titles = [], [], [], []
        with np.load(predictions / SLICES, allow_pickle=False) as slices:
            for row in np.argsort(-true, kind="stable")[:NUM_OVERLAYS]:
                p, r, _ = read_pair(predictions, MODEL, ids[row])
                file: Any = nibabel.load(str(predictions / REFERENCE / f"{ids[row]}.nii.gz"))
                p, r = (_to_ras(mask, file.affine) for mask in (p, r))
                height = _widest(r)
                planes.append(slices[ids[row]])
                predicted.append(p[:, :, height])
                reference.append(r[:, :, height])
                titles.append(f"{volume[row]:.0f} of {true[row]:.0f} ml")
        return figures.overlays(planes, predicted, reference, titles)

    def _phase(self, case: Case) -> str:
        named = [phase for phase in self.classes.phases or () if case.labels.get(phase)]
        assert len(named) == bool(self.classes.phases), f"a case in {named}"
        return named[0] if named else ""

    def _notes(self) -> tuple[str, ...]:
        notes = [
            "native space, true spacing; cases with an empty reference enter only "
            "false_positive_ml and the volumes",
            "an empty prediction on a lesion counts as Dice 0, NSD 0, HD95 the image's diagonal",
            "HD95 is the larger of the two directed 95th percentiles (MONAI)",
            f"NSD at {self.classes.tolerance_mm:g} mm is harsh where voxels are larger than that",
            "padding_fraction is the share of the network's input voxels outside the image",
        ]
        if self.classes.lesions:
            notes.append("lesion_f1 pairs connected components one to one at IoU above 0.1")
        if self.classes.phases:
            notes.append("an empty ventricle at end-diastole counts as an ejection fraction of 0 %")
        return tuple(notes)


def load_cases(
    cases: Sequence[Case],
    spacing_mm: Spacing,
    window_hu: tuple[int, int] | None,
    num_classes: int,
    ledger: Ledger,
) -> dict[str, Loaded]:
    """Cases on the network's grid by id; the rest to the ledger.

    With ``window_hu`` a CT: HU, windowed to [0, 1]. Without, another modality: z-scores by mean and
    deviation of the non-zero voxels.
    """
    loaded = {}
    for case in cases:
        try:
            image, affine = load_image(case)
            classes, mask_affine = load_image(Case(case.case_id, "", case.mask or Path()))
        except RefusedNifti as refused:
            ledger.quarantine(case.case_id, refused.reason, refused.detail)
            continue
        except Exception as error:  # any other reader's error means: this file cannot be read
            ledger.quarantine(case.case_id, Reason.UNREADABLE, type(error).__name__)
            continue
        if image.ndim != 3:
            found: tuple[Reason, str] | None = (Reason.WRONG_SHAPE, f"{image.ndim} axes")
        elif window_hu:
            found = problem(image)
        else:
            found = _no_contrast(image)
        if found is None and classes.shape != image.shape:
            found = Reason.WRONG_SHAPE, f"mask {classes.shape}, image {image.shape}"
        if found is None and not np.allclose(mask_affine, affine, atol=1e-2):
            found = Reason.MIXED_GEOMETRY, "mask and image have different affines"
        if found is None and not np.isin(classes, np.arange(1 + num_classes)).all():
            found = Reason.INVALID_LABEL, f"mask values beyond 0 to {num_classes}"
        if found is not None:
            ledger.quarantine(case.case_id, *found)
            continue
        grid = network_grid(image.shape, affine, spacing_mm)
        loaded[case.case_id] = Loaded(
            network_input(image, grid, window_hu),
            grid.classes_from_image(classes, num_classes),
            grid,
        )
    return loaded


def network_input(
    image: np.ndarray, grid: NetworkGrid, window_hu: tuple[int, int] | None
) -> np.ndarray:
    """float32 (D, H, W); the padding looks like air, or like a voxel of value 0."""
    if window_hu:
        return apply_window(grid.from_image(image, window_hu[0]), window_hu)
    tissue = image[image != 0]
    mean, deviation = float(tissue.mean()), float(tissue.std())
    scores = np.clip((image - mean) / deviation, -MAX_DEVIATIONS, MAX_DEVIATIONS)
    of_zero = max(-mean / deviation, -MAX_DEVIATIONS)
    # `resample` takes integers: thousandths of a deviation.
    return grid.from_image(scores * 1000, round(of_zero * 1000)).astype(np.float32) / 1000


def _no_contrast(image: np.ndarray) -> tuple[Reason, str] | None:
    if not np.isfinite(image).all():
        return Reason.NOT_FINITE, ""
    tissue = image[image != 0]
    if not len(tissue) or tissue.min() == tissue.max():
        return Reason.CONSTANT, ""
    return None


def _crop(
    case: Loaded, size: tuple[int, int, int], drawn: torch.Generator, mirror: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """A crop (D, H, W) of ``size``, every other one around a voxel of a class, each class as often;
    mirrored half the time in W if asked. A smaller volume is padded at its end with its minimum."""
    volume, classes = case.volume, case.classes
    short = [(0, max(0, want - have)) for want, have in zip(size, volume.shape, strict=True)]
    if any(after for _, after in short):
        volume = np.pad(volume, short, constant_values=float(volume.min()))
        classes = np.pad(classes, short)
    number = torch.rand(5, generator=drawn).tolist()
    room = np.array(volume.shape) - size
    start = (np.array(number[:3]) * (room + 1)).astype(int)
    present = np.flatnonzero(np.bincount(classes.ravel())[1:]) + 1
    if len(present) and number[3] < 0.5:
        chosen = present[int(torch.randint(len(present), (1,), generator=drawn))]
        voxels = np.flatnonzero(classes == chosen)
        pick = int(torch.randint(len(voxels), (1,), generator=drawn))
        centre = np.array(np.unravel_index(voxels[pick], classes.shape))
        shift = (np.array(number[:3]) - 0.5) * np.array(size) / 2
        start = np.clip((centre - np.array(size) / 2 + shift).astype(int), 0, room)
    box = tuple(slice(a, a + b) for a, b in zip(start, size, strict=True))
    turn = -1 if mirror and number[4] < 0.5 else 1
    return volume[box][:, :, ::turn].copy(), classes[box][:, :, ::turn].copy()


def _prior(train: Sequence[Loaded], num_classes: int) -> np.ndarray:
    """Training frequency of each class on the unit grid, [classes, 32, 32, 32], shifted so that its
    best training threshold is 0.5."""
    priors = []
    for number in range(1, 1 + num_classes):
        stack = np.stack(
            [
                _resize((case.classes[case.grid.inside] == number).astype(np.float32), UNIT_GRID)
                for case in train
            ]
        )
        frequency, true = stack.mean(axis=0), stack > 0.5
        best, best_dice = 0.5, -1.0
        for threshold in np.linspace(0.02, 0.98, 49) * max(float(frequency.max()), 1e-6):
            chosen = frequency > threshold
            both = (true & chosen).sum(axis=(1, 2, 3))
            dice = float((2 * both / np.maximum(true.sum(axis=(1, 2, 3)) + chosen.sum(), 1)).mean())
            if dice > best_dice:
                best, best_dice = float(threshold), dice
        priors.append(np.clip(frequency - best + 0.5, 0, 1).astype(np.float32))
    return np.stack(priors)


def _prior_on(prior: np.ndarray, grid: NetworkGrid) -> np.ndarray:
    """[1 + classes, D, H, W] on a case's grid; a class wins where it is above 0.5."""
    on_grid = np.zeros((1 + len(prior), *grid.shape_voxels), np.float32)
    for number, frequency in enumerate(prior, 1):
        on_grid[number][grid.inside] = _resize(frequency, grid.num_inside)
    on_grid[0] = 1 - on_grid[1:].max(axis=0)
    return on_grid


def _resize(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    factors = [new / old for new, old in zip(shape, array.shape, strict=True)]
    return zoom(array, factors, order=1, mode="nearest", grid_mode=True)


def _save_mask(path: Path, mask: np.ndarray, like: Any) -> None:
    image = nibabel.Nifti1Image(mask.astype(np.uint8), like.affine)
    with paths.atomic_write(path) as temporary:
        # mkstemp keeps only the last suffix; nibabel chooses compression by the whole one.
        compressed = temporary.with_name(f"{temporary.name}.nii.gz")
        nibabel.save(image, str(compressed))
        compressed.replace(temporary)


def _read_mask(path: Path | None) -> np.ndarray:
    """uint8 class numbers (X, Y, Z) as the file stores them."""
    assert path is not None, "a segmentation case without mask"
    image: Any = nibabel.load(str(path))
    return np.rint(np.asarray(image.dataobj)).astype(np.uint8).reshape(image.shape[:3])


def _to_ras(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    ras: Any = nibabel.as_closest_canonical(nibabel.Nifti1Image(mask.astype(np.uint8), affine))
    return np.asarray(ras.dataobj)


def _widest(mask: np.ndarray) -> int:
    """Axial index with most foreground; the middle without any. ``mask`` is RAS (X, Y, Z)."""
    area = (mask > 0).sum(axis=(0, 1))
    return int(area.argmax()) if area.any() else mask.shape[2] // 2


def _slice(
    case: Case, mask: np.ndarray, affine: np.ndarray, window_hu: tuple[int, int] | None
) -> np.ndarray:
    """uint8 (X, Y) of the RAS volume where the reference is widest."""
    image, _ = load_image(case)
    plane = image[:, :, _widest(_to_ras(mask, affine))]
    if window_hu:
        grey = apply_window(plane, window_hu)
    else:
        low, high = np.percentile(image, [1, 99])
        grey = np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1)
    return np.round(grey * 255).astype(np.uint8)
