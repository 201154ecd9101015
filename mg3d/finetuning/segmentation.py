"""Kind: one foreground mask per volume, predicted window by window, scored in native space.

A case is resampled to the task's spacing (the contract's by default) over its whole extent, crops
train a UNETR decoder on the encoder's maps, a sliding window predicts, and the probability is
brought back to the voxels of the image's own file before it becomes a mask. Nulls: ``empty_mask``,
nothing anywhere; ``training_prior``, one mask for every patient: where training lesions are
frequent, in coordinates relative to the volume, cut where training Dice is best.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import map_coordinates, zoom
from torch import Tensor, nn

from mg3d import paths
from mg3d.data.nifti import RefusedNifti
from mg3d.data.resample import resample_to_contract
from mg3d.data.volumes import apply_window
from mg3d.figures import segmentation as figures
from mg3d.finetuning.encoders import starting_encoder
from mg3d.finetuning.fitting import fit_head
from mg3d.finetuning.images import load_image, problem
from mg3d.finetuning.task import Case, OnMetrics, Scores, Split
from mg3d.ledger import Ledger, Reason
from mg3d.metrics.agreement import bland_altman
from mg3d.metrics.bootstrap import Estimate, estimate, mean_estimate
from mg3d.metrics.segmentation import Overlap, overlap
from mg3d.params import Covid1920, VolumeContract
from mg3d.training.order import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "segmentation"
MODEL, NULLS = "model", ("empty_mask", "training_prior")
REFERENCE, CASES, SLICES = "reference", "cases.csv", "slices.npz"
TOLERANCE_MM = 2.0
UNIT_GRID = (32, 32, 32)
UNETR_STRIDES = (2, 4, 8, 16, 32)
NUM_OVERLAYS = 8


class UNETR(nn.Module):
    """UNETR decoder (Hatamizadeh et al. 2022) on five maps at strides 2 to 32.

    MONAI's SwinUNETR, block for block, around an encoder that exists already; the norm is over
    groups of channels, because a crop's deepest map may be a single voxel. Raises ValueError for an
    encoder with other maps.
    """

    def __init__(self, encoder: Any, train_encoder: bool) -> None:
        from monai.networks.blocks.dynunet_block import UnetOutBlock
        from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock

        super().__init__()
        if encoder.strides != UNETR_STRIDES:
            raise ValueError(
                f"segmentation decodes maps at strides {UNETR_STRIDES}, and this encoder's are at "
                f"{encoder.strides}: pre-train with model.vision.name swin or dynunet"
            )
        self.encoder = encoder.requires_grad_(train_encoder)
        width = encoder.channels // 16
        norm = ("group", {"num_groups": math.gcd(width, 4)})
        options: dict[str, Any] = {
            "spatial_dims": 3,
            "kernel_size": 3,
            "norm_name": norm,
            "res_block": True,
        }
        sizes = (1, width, 2 * width, 4 * width, 16 * width)
        self.lateral = nn.ModuleList(
            UnetrBasicBlock(in_channels=size, out_channels=max(size, width), stride=1, **options)
            for size in sizes
        )
        self.up = nn.ModuleList(
            UnetrUpBlock(
                in_channels=factor * width,
                out_channels=max(1, factor // 2) * width,
                upsample_kernel_size=2,
                **options,
            )
            for factor in (16, 8, 4, 2, 1)
        )
        self.out = UnetOutBlock(spatial_dims=3, in_channels=width, out_channels=2)

    def forward(self, volume: Tensor) -> Tensor:
        """[B, 1, D, H, W] -> logits of background and lesion [B, 2, D, H, W]."""
        first, second, third, fourth, last = self.encoder(volume)
        skips = [
            fourth,
            self.lateral[3](third),
            self.lateral[2](second),
            self.lateral[1](first),
            self.lateral[0](volume),
        ]
        x = self.lateral[4](last)
        for up, skip in zip(self.up, skips, strict=True):
            x = up(x, skip)
        return self.out(x)


class DiceCrossEntropy(nn.Module):
    """Network and loss: (volume [B,1,D,H,W], mask [B,1,D,H,W]) -> named losses.

    Dice with squared denominators plus cross-entropy, background included (spec/downstream 8).
    """

    def __init__(self, network: nn.Module) -> None:
        from monai.losses.dice import DiceCELoss

        super().__init__()
        self.network = network
        self.loss = DiceCELoss(softmax=True, to_onehot_y=True, squared_pred=True)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        volume, mask = batch
        return {"total": self.loss(self.network(volume), mask)}


def predict(
    split: Split,
    checkpoint: Path,
    predictions: Path,
    params: Covid1920,
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
    from monai.inferers.utils import sliding_window_inference

    encoder, contract, provenance = starting_encoder(checkpoint, params)
    spacing_mm = params.spacing_mm or contract.spacing_mm
    loaded = {name: _load(cases, spacing_mm, params, ledger) for name, cases in split.items()}
    for name, cases in split.items():
        split[name] = [case for case in cases if case.case_id in loaded[name]]
    train = loaded["train"] | loaded["validation"]
    drawn = generator(params.seed, "crops")

    def make_batch(cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        crops = [_crop(*train[case.case_id], params.crop_voxels, drawn) for case in cases]
        return (
            torch.from_numpy(np.stack([volume for volume, _ in crops])[:, None]),
            torch.from_numpy(np.stack([mask for _, mask in crops])[:, None].astype(np.float32)),
        )

    torch.manual_seed(params.seed)
    network = UNETR(encoder, train_encoder=params.mode != "frozen")
    fit_head(
        DiceCrossEntropy(network),
        split["train"],
        split["validation"],
        make_batch,
        params,
        on_metrics,
        prefix,
    )
    prior = _prior([loaded["train"][case.case_id][1] for case in split["train"]])
    slices: Any = {}
    for case in split["test"]:
        volume, _ = loaded["test"][case.case_id]
        with torch.inference_mode():
            logits: Any = sliding_window_inference(
                torch.from_numpy(volume)[None, None],
                params.crop_voxels,
                sw_batch_size=4,
                predictor=network,
                overlap=params.window_overlap_fraction,
                mode="gaussian",
            )
        grid = {
            MODEL: logits.softmax(1)[0, 1].numpy(),
            "empty_mask": np.zeros(volume.shape, np.float32),
            "training_prior": _resize(prior, volume.shape),
        }
        native: Any = nibabel.load(str(case.image))
        for system, probability in grid.items():
            on_file = to_native(probability, spacing_mm, native.shape[:3], native.affine)
            _save_mask(predictions / system / f"{case.case_id}.nii.gz", on_file > 0.5, native)
        reference = _read_mask(case.mask)
        _save_mask(predictions / REFERENCE / f"{case.case_id}.nii.gz", reference, native)
        slices[case.case_id] = _slice(case, reference, native.affine, params)
    pd.DataFrame(
        {
            "case_id": [case.case_id for case in split["test"]],
            "patient_id": [case.patient_id for case in split["test"]],
        }
    ).to_csv(predictions / CASES, index=False)
    np.savez_compressed(predictions / SLICES, **slices)
    return provenance


def score(predictions: Path, params: Covid1920) -> Scores:
    """Dice, HD95, NSD at 2 mm, pooled Dice and volume bias; empty references apart."""
    table = pd.read_csv(predictions / CASES)
    overlaps = {system: _overlaps(predictions, system, table) for system in (MODEL, *NULLS)}
    patients = table["patient_id"].tolist()
    of_model = overlaps[MODEL]
    volume = np.array([o.volume_ml for o in of_model])
    reference = np.array([o.reference_volume_ml for o in of_model])
    _, low, high = bland_altman(volume, reference)
    return Scores(
        metrics=_metrics(of_model, patients, params),
        nulls={null: _metrics(overlaps[null], patients, params) for null in NULLS},
        counts={
            "test_cases": len(table),
            "empty_references": int((reference == 0).sum()),
            "empty_predictions": int((volume == 0).sum()),
            "volume_limit_low_ml": low,
            "volume_limit_high_ml": high,
        }
        if len(table) > 1
        else {"test_cases": len(table)},
        notes=(
            "native space, true spacing; cases with an empty reference enter only "
            "false_positive_ml and the volumes",
            "an empty prediction on a lesion counts as Dice 0, NSD 0, HD95 the image's diagonal",
            "HD95 is the larger of the two directed 95th percentiles (MONAI)",
            f"NSD at {TOLERANCE_MM} mm is harsh where voxels are larger than that",
        ),
    )


def draw(predictions: Path, params: Covid1920) -> "dict[str, Figure]":
    """``overlays`` of the first test cases with a lesion, and ``bland_altman``."""
    table = pd.read_csv(predictions / CASES)
    overlaps = _overlaps(predictions, MODEL, table, volumes_only=True)
    volume = np.array([o.volume_ml for o in overlaps])
    reference = np.array([o.reference_volume_ml for o in overlaps])
    planes, predicted, true, titles = [], [], [], []
    with np.load(predictions / SLICES, allow_pickle=False) as slices:
        for case_id in table["case_id"][np.argsort(-reference, kind="stable")][:NUM_OVERLAYS]:
            plane = slices[case_id]
            masks = [
                nibabel.as_closest_canonical(
                    nibabel.load(str(predictions / system / f"{case_id}.nii.gz"))
                )
                for system in (MODEL, REFERENCE)
            ]
            p, r = (np.asarray(mask.dataobj) > 0 for mask in masks)
            height = _widest(r)
            planes.append(plane)
            predicted.append(p[:, :, height])
            true.append(r[:, :, height])
            row = int(np.flatnonzero(table["case_id"] == case_id)[0])
            titles.append(f"{volume[row]:.0f} of {reference[row]:.0f} ml")
    bias, low, high = bland_altman(volume, reference)
    return {
        "overlays": figures.overlays(planes, predicted, true, titles),
        "bland_altman": figures.bland_altman(volume, reference, bias, (low, high)),
    }


def to_native(
    grid: np.ndarray,
    spacing_mm: tuple[float, float, float],
    shape: tuple[int, int, int],
    affine: np.ndarray,
) -> np.ndarray:
    """Values on a contract grid (D, H, W), brought to the voxels of a file by linear interpolation.

    Inverts `resample_to_contract` for a grid of ``spacing_mm`` (z, y, x) centred on the file's
    volume of ``shape`` (X, Y, Z) and ``affine`` (to RAS mm, any orientation, also oblique).
    Outside the grid: 0.
    """
    rotation, offset = affine[:3, :3], affine[:3, 3]
    centre_mm = rotation @ ((np.array(shape) - 1) / 2) + offset
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    from_centre_mm = rotation @ index + (offset - centre_mm)[:, None]
    middle = (np.array(grid.shape)[:, None] - 1) / 2
    where = from_centre_mm[::-1] / np.array(spacing_mm)[:, None] + middle
    values = map_coordinates(grid.astype(np.float32), where, order=1, mode="nearest")
    outside = (where < -0.5) | (where > np.array(grid.shape)[:, None] - 0.5)
    return np.where(outside.any(axis=0), 0.0, values).reshape(shape)


def grid_contract(
    shape: tuple[int, ...],
    affine: np.ndarray,
    spacing_mm: tuple[float, float, float],
    window_hu: tuple[int, int] = (-1000, 1000),
) -> VolumeContract:
    """A contract that holds the whole volume (X, Y, Z): sizes rounded up to multiples of 32."""
    extent_mm = np.abs(affine[:3, :3]) @ np.array(shape[:3])
    voxels = np.ceil(extent_mm[::-1] / np.array(spacing_mm) - 1e-6)
    depth, height, width = (int(-(-size // 32) * 32) for size in voxels)
    return VolumeContract(
        spacing_mm=spacing_mm, shape_voxels=(depth, height, width), window_hu=window_hu
    )


def _load(
    cases: Sequence[Case],
    spacing_mm: tuple[float, float, float],
    params: Covid1920,
    ledger: Ledger,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Windowed volume float32 and mask bool, both (D, H, W), by case id; the rest to the ledger."""
    loaded = {}
    for case in cases:
        try:
            image, affine = load_image(case)
            mask_image, mask_affine = load_image(Case(case.case_id, "", case.mask or Path()))
        except RefusedNifti as refused:
            ledger.quarantine(case.case_id, refused.reason, refused.detail)
            continue
        except Exception as error:  # any other reader's error means: this file cannot be read
            ledger.quarantine(case.case_id, Reason.UNREADABLE, type(error).__name__)
            continue
        found = problem(image) if image.ndim == 3 else (Reason.WRONG_SHAPE, f"{image.ndim} axes")
        if found is None and mask_image.shape != image.shape:
            found = Reason.WRONG_SHAPE, f"mask {mask_image.shape}, image {image.shape}"
        if found is None and not np.allclose(mask_affine, affine, atol=1e-2):
            found = Reason.MIXED_GEOMETRY, "mask and image have different affines"
        if found is not None:
            ledger.quarantine(case.case_id, *found)
            continue
        grid = grid_contract(image.shape, affine, spacing_mm, params.window_hu)
        volume = apply_window(resample_to_contract(image, affine, grid), params.window_hu)
        # Half a voxel of lesion and more is lesion: the mask travels as 0 and 1000 "HU".
        mask = resample_to_contract((mask_image > 0) * np.float32(1000), affine, grid) >= 500
        loaded[case.case_id] = volume, mask
    return loaded


def _crop(
    volume: np.ndarray, mask: np.ndarray, size: tuple[int, int, int], drawn: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A crop (D, H, W) of ``size``: every other one around a lesion voxel; mirrored half the time
    in W. Smaller volumes are padded at their end with the volume's minimum (air)."""
    short = [(0, max(0, want - have)) for want, have in zip(size, volume.shape, strict=True)]
    volume = np.pad(volume, short, constant_values=float(volume.min()))
    mask = np.pad(mask, short)
    number = torch.rand(5, generator=drawn).tolist()
    room = np.array(volume.shape) - size
    start = (np.array(number[:3]) * (room + 1)).astype(int)
    lesion = np.flatnonzero(mask if number[3] < 0.5 else False)
    if len(lesion):
        pick = int(torch.randint(len(lesion), (1,), generator=drawn))
        centre = np.array(np.unravel_index(lesion[pick], mask.shape))
        shift = (np.array(number[:3]) - 0.5) * np.array(size) / 2
        start = np.clip((centre - np.array(size) / 2 + shift).astype(int), 0, room)
    box = tuple(slice(a, a + b) for a, b in zip(start, size, strict=True))
    turn = -1 if number[4] < 0.5 else 1
    return volume[box][:, :, ::turn].copy(), mask[box][:, :, ::turn].copy()


def _prior(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Training frequency on the unit grid, shifted so that its best training threshold is 0.5."""
    stack = np.stack([_resize(mask.astype(np.float32), UNIT_GRID) for mask in masks])
    frequency = stack.mean(axis=0)
    true = stack > 0.5
    best, best_dice = 0.5, -1.0
    for threshold in np.linspace(0.02, 0.98, 49) * max(float(frequency.max()), 1e-6):
        chosen = frequency > threshold
        both = (true & chosen).sum(axis=(1, 2, 3))
        dice = float((2 * both / np.maximum(true.sum(axis=(1, 2, 3)) + chosen.sum(), 1)).mean())
        if dice > best_dice:
            best, best_dice = float(threshold), dice
    return np.clip(frequency - best + 0.5, 0, 1).astype(np.float32)


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
    """bool (X, Y, Z) as the file stores it."""
    assert path is not None, "a segmentation case without mask"
    image: Any = nibabel.load(str(path))
    return np.asarray(image.dataobj) > 0


def _widest(mask: np.ndarray) -> int:
    """Axial index with most lesion; the middle without any. ``mask`` is RAS (X, Y, Z)."""
    area = mask.sum(axis=(0, 1))
    return int(area.argmax()) if area.any() else mask.shape[2] // 2


def _slice(case: Case, mask: np.ndarray, affine: np.ndarray, params: Covid1920) -> np.ndarray:
    """uint8 (X, Y) of the RAS volume where the reference is widest."""
    image, _ = load_image(case)
    ras = nibabel.as_closest_canonical(nibabel.Nifti1Image(mask.astype(np.uint8), affine))
    height = _widest(np.asarray(ras.dataobj) > 0)
    return np.round(apply_window(image[:, :, height], params.window_hu) * 255).astype(np.uint8)


def _overlaps(
    predictions: Path, system: str, table: pd.DataFrame, volumes_only: bool = False
) -> list[Overlap]:
    """One `Overlap` per row of ``table``. Raises ValueError naming a missing prediction."""
    found = []
    for case_id in table["case_id"]:
        path = predictions / system / f"{case_id}.nii.gz"
        if not path.exists():
            raise ValueError(f"no prediction {path}: every test case must have one")
        image: Any = nibabel.load(str(path))
        predicted = np.asarray(image.dataobj) > 0
        reference = _read_mask(predictions / REFERENCE / path.name)
        spacing_mm = tuple(float(size) for size in image.header.get_zooms()[:3])
        if volumes_only:
            voxel_ml, nan = float(np.prod(spacing_mm)) / 1000, float("nan")
            found.append(
                Overlap(nan, nan, nan, predicted.sum() * voxel_ml, reference.sum() * voxel_ml)
            )
        else:
            found.append(overlap(predicted, reference, spacing_mm, TOLERANCE_MM))  # type: ignore[arg-type]
    return found


def _metrics(
    overlaps: Sequence[Overlap], patients: Sequence[str], params: Covid1920
) -> dict[str, Estimate]:
    dice = np.array([o.dice for o in overlaps])
    volume = np.array([o.volume_ml for o in overlaps])
    reference = np.array([o.reference_volume_ml for o in overlaps])
    common: Any = {"num_resamples": params.num_bootstrap, "seed": params.seed}

    def pooled(rows: np.ndarray) -> float:
        total = (volume + reference)[rows].sum()
        both = np.nan_to_num(dice * (volume + reference))[rows].sum()
        return float(both / total) if total else float("nan")

    lesion = "no test case with a lesion"
    empty = np.where(reference == 0, volume, np.nan)
    return {
        "dice": mean_estimate(dice, patients, undefined=lesion, **common),
        "hd95_mm": mean_estimate(
            np.array([o.hd95_mm for o in overlaps]), patients, undefined=lesion, **common
        ),
        "nsd_2mm": mean_estimate(
            np.array([o.nsd for o in overlaps]), patients, undefined=lesion, **common
        ),
        "pooled_dice": estimate(pooled, patients, undefined=lesion, **common),
        "volume_bias_ml": mean_estimate(volume - reference, patients, **common),
        "false_positive_ml": mean_estimate(
            empty, patients, undefined="no test case with an empty reference", **common
        ),
    }
