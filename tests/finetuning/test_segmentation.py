from typing import Literal

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from mg3d.data.resample import resample_to_contract
from mg3d.finetuning.segmentation import (
    UNETR,
    UNIT_GRID,
    DiceCrossEntropy,
    _crop,
    _prior,
    _resize,
    grid_contract,
    to_native,
)
from mg3d.metrics.segmentation import overlap
from mg3d.params import VisionEncoder

SPACING_MM = (4.0, 3.0, 3.0)


def ball(shape: tuple[int, int, int], affine: np.ndarray, radius_mm: float) -> np.ndarray:
    """A ball off the centre, in file voxels."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    centre = (np.array(shape) - 1) / 2
    where = (index - centre) @ affine[:3, :3].T - np.array([10.0, -6.0, 4.0])
    return np.linalg.norm(where, axis=-1) < radius_mm


def affines() -> list[np.ndarray]:
    """RAS, LAS, axes permuted (SRA), and oblique by 20 degrees."""
    ras = np.diag([2.0, 2.5, 5.0, 1.0])
    las = np.diag([-2.0, 2.5, 5.0, 1.0])
    permuted = np.eye(4)
    permuted[:3, :3] = np.array([[0, 2.5, 0], [0, 0, 5.0], [2.0, 0, 0]])
    angle = np.deg2rad(20)
    oblique = np.eye(4)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    oblique[:3, :3] = turn @ np.diag([2.0, 2.5, 5.0])
    for affine in (ras, las, permuted, oblique):
        affine[:3, 3] = [-30.0, 12.0, 400.0]
    return [ras, las, permuted, oblique]


@pytest.mark.parametrize("affine", affines(), ids=["RAS", "LAS", "SRA", "oblique"])
def test_there_and_back_is_the_same_place(affine: np.ndarray) -> None:
    shape = (40, 36, 24)
    mask = ball(shape, affine, 18.0)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(mask.astype(np.float32), affine))
    grid = grid_contract(image.shape, image.affine, SPACING_MM)
    packed = resample_to_contract(np.asarray(image.dataobj) * 1000, image.affine, grid)
    back = to_native(np.clip(packed, 0, 1000) / 1000, SPACING_MM, shape, affine) > 0.5
    spacing_mm = tuple(np.linalg.norm(affine[:3, :3], axis=0))
    assert overlap(back, mask, spacing_mm).dice > 0.93


def test_grid_holds_the_whole_volume() -> None:
    for affine in affines():
        grid = grid_contract((40, 36, 24), affine, SPACING_MM)
        corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in (40, 36, 24)])).reshape(3, -1)
        extent = np.ptp(affine[:3, :3] @ corners, axis=1)[::-1]
        assert (np.array(grid.shape_voxels) * SPACING_MM >= extent - 1e-6).all()
        assert all(size % 32 == 0 for size in grid.shape_voxels)


def test_crops_hold_lesion_half_the_time_and_pad_small_volumes() -> None:
    volume = np.zeros((40, 64, 64), np.float32)
    mask = np.zeros(volume.shape, bool)
    mask[38, 60, 60] = True
    volume[mask] = 1
    drawn = torch.Generator().manual_seed(0)
    crops = [_crop(volume, mask, (32, 32, 32), drawn) for _ in range(80)]
    assert all(v.shape == m.shape == (32, 32, 32) for v, m in crops)
    assert all(np.array_equal(v > 0, m) for v, m in crops)
    assert 0.4 < np.mean([m.any() for _, m in crops]) < 0.75
    small, _ = _crop(volume[:8, :8, :8], mask[:8, :8, :8], (32, 32, 32), drawn)
    assert small.shape == (32, 32, 32)


def test_prior_is_the_mask_itself_when_all_patients_agree() -> None:
    mask = np.zeros((32, 48, 64), bool)
    mask[8:16, 10:30, 20:40] = True
    prior = _prior([mask, mask])
    assert prior.shape == UNIT_GRID
    assert np.array_equal(_resize(mask.astype(np.float32), UNIT_GRID) > 0.5, prior > 0.5)
    nothing = _prior([np.zeros((32, 32, 32), bool)])
    assert not (nothing > 0.5).any()


def _encoder(name: Literal["swin", "unet3d", "dynunet"]) -> nn.Module:
    from mg3d.models.vision import vision_encoder

    return vision_encoder(
        VisionEncoder(
            name=name, embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_voxels=2
        )
    )


def test_unetr_refuses_an_encoder_with_maps_at_other_strides() -> None:
    with pytest.raises(
        ValueError, match=r"\(1, 2, 4, 8, 32\): .*model.vision.name swin or dynunet"
    ):
        UNETR(_encoder("unet3d"), train_encoder=True)


@pytest.mark.parametrize("name", ["swin", "dynunet"])
@pytest.mark.parametrize("train_encoder", [True, False])
def test_unetr_shape_and_what_it_trains(
    train_encoder: bool, name: Literal["swin", "dynunet"]
) -> None:
    encoder = _encoder(name)
    module = DiceCrossEntropy(UNETR(encoder, train_encoder))
    volume = torch.rand(1, 1, 32, 64, 32)
    assert module.network(volume).shape == (1, 2, 32, 64, 32)
    loss = module((volume, (volume > 0.5).float()))["total"]
    loss.backward()
    moved = {name: p.grad is not None and bool(p.grad.abs().sum() > 0)
             for name, p in module.named_parameters()}  # fmt: skip
    assert all(got for name, got in moved.items() if ".encoder." not in name)
    assert any(got for name, got in moved.items() if ".encoder." in name) == train_encoder
