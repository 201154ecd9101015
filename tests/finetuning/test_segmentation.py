from pathlib import Path

import numpy as np
import pytest
import torch

from mg3d.finetuning.network_grid import network_grid
from mg3d.finetuning.segmentation import (
    UNIT_GRID,
    Loaded,
    _crop,
    _no_contrast,
    _prior,
    _prior_on,
    load_cases,
    network_input,
)
from mg3d.finetuning.task import Case
from mg3d.ledger import Ledger, Reason
from tests.downstream.layouts import chest_hu, lesion_box, write_nifti


def loaded(volume: np.ndarray, classes: np.ndarray) -> Loaded:
    grid = network_grid(volume.shape[::-1], np.eye(4), (1.0, 1.0, 1.0))
    return Loaded(volume, classes.astype(np.uint8), grid)


def test_crops_hold_each_class_as_often_and_pad_small_volumes() -> None:
    volume = np.zeros((64, 64, 64), np.float32)
    classes = np.zeros(volume.shape, np.uint8)
    classes[:4, :20, :20] = 1  # large, in one corner
    classes[62, 60, 60] = 2  # a single voxel, in the other
    volume[:] = classes
    drawn = torch.Generator().manual_seed(0)
    crops = [_crop(loaded(volume, classes), (32, 32, 32), drawn) for _ in range(200)]
    assert all(v.shape == m.shape == (32, 32, 32) for v, m in crops)
    assert all(np.array_equal(v, m) for v, m in crops)
    of_small = np.mean([(m == 2).any() for _, m in crops])
    assert 0.17 < of_small < 0.33  # a quarter, by choice; hardly ever by chance
    small, _ = _crop(loaded(volume[:8, :8, :8], classes[:8, :8, :8]), (32, 32, 32), drawn)
    assert small.shape == (32, 32, 32)


def test_a_heart_is_not_mirrored() -> None:
    volume = np.zeros((32, 32, 32), np.float32)
    volume[:, :, 0] = 1
    drawn = torch.Generator().manual_seed(0)
    of = loaded(volume, np.zeros(volume.shape))
    for mirror, sides in ((True, {0, 31}), (False, {0})):
        crops = [_crop(of, (32, 32, 32), drawn, mirror)[0] for _ in range(20)]
        assert {int(crop[0, 0].argmax()) for crop in crops} == sides


def test_prior_is_the_masks_themselves_when_all_patients_agree() -> None:
    classes = np.zeros((32, 48, 64), np.uint8)
    classes[8:16, 10:30, 20:40] = 1
    classes[16:24, 10:30, 20:40] = 2
    grid = network_grid((64, 48, 32), np.eye(4), (1.0, 1.0, 1.0))
    case = Loaded(classes.astype(np.float32), np.pad(classes, ((0, 0), (8, 8), (0, 0))), grid)
    prior = _prior([case, case], 2)
    assert prior.shape == (2, *UNIT_GRID)
    on_grid = _prior_on(prior, grid).argmax(axis=0)
    assert on_grid.shape == grid.shape_voxels == (32, 64, 64)
    agreement = (on_grid[grid.inside] == classes).mean()
    assert agreement > 0.98
    assert not on_grid[:, :8].any()  # padding is no place for a lesion
    nothing = _prior([loaded(classes[:, :32, :32] * 1.0, np.zeros((32, 32, 32)))], 1)
    assert not (nothing > 0.5).any()


def test_z_scores_are_of_the_voxels_that_are_not_zero() -> None:
    generator = np.random.default_rng(0)
    image = np.zeros((32, 32, 32))
    image[8:24] = generator.normal(700, 50, (16, 32, 32))
    grid = network_grid(image.shape, np.eye(4), (1.0, 1.0, 1.0))
    tissue = image[8:24]
    volume = network_input(image, grid, None).transpose(2, 1, 0)
    np.testing.assert_allclose(volume[8:24], (tissue - tissue.mean()) / tissue.std(), atol=6e-4)
    np.testing.assert_allclose(volume[:8], -tissue.mean() / tissue.std(), atol=6e-4)
    # Whatever the unit: MR has none.
    np.testing.assert_allclose(
        network_input(image * 7, grid, None).transpose(2, 1, 0), volume, atol=2e-3
    )


def test_an_image_without_contrast_has_no_z_scores() -> None:
    image = np.zeros((4, 4, 4))
    assert _no_contrast(image) == (Reason.CONSTANT, "")
    image[0] = 5
    assert _no_contrast(image) == (Reason.CONSTANT, "")
    image[1] = 6
    assert _no_contrast(image) is None
    image[2] = np.nan
    assert _no_contrast(image) == (Reason.NOT_FINITE, "")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("shape", Reason.WRONG_SHAPE),
        ("spacing", Reason.MIXED_GEOMETRY),
        ("label", Reason.INVALID_LABEL),
        ("text", Reason.UNREADABLE),
    ],
)
def test_a_mask_that_does_not_fit_is_quarantined(
    tmp_path: Path, spoil: str, reason: Reason
) -> None:
    shape = (24, 22, 12)
    mask = np.zeros(shape, np.uint8)
    mask[lesion_box(shape)] = 2 if spoil == "label" else 1
    if spoil == "shape":
        mask = mask[:-1]
    spacing_mm = (6.0, 6.0, 9.0 if spoil == "spacing" else 10.0)
    write_nifti(tmp_path / "image.nii.gz", chest_hu(shape), (6.0, 6.0, 10.0))
    write_nifti(tmp_path / "mask.nii.gz", mask, spacing_mm)
    if spoil == "text":
        (tmp_path / "mask.nii.gz").write_text("no mask")
    ledger = Ledger("msd_lung", "case", ["one"])
    case = Case("one", "p", tmp_path / "image.nii.gz", mask=tmp_path / "mask.nii.gz")
    assert load_cases([case], (10.0, 6.0, 6.0), (-1000, 400), 1, ledger) == {}
    assert [entry.reason for entry in ledger.entries] == [reason]
