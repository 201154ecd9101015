from typing import Literal

import pytest
import torch
from torch import nn

from mg3d.finetuning.unetr import UNETR, DiceCrossEntropy
from mg3d.params import VisionEncoder


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
@pytest.mark.parametrize(("train_encoder", "num_classes"), [(True, 3), (False, 1)])
def test_unetr_shape_and_what_it_trains(
    train_encoder: bool, num_classes: int, name: Literal["swin", "dynunet"]
) -> None:
    encoder = _encoder(name)
    module = DiceCrossEntropy(UNETR(encoder, train_encoder, num_classes))
    volume = torch.rand(1, 1, 32, 64, 32)
    assert module.network(volume).shape == (1, 1 + num_classes, 32, 64, 32)
    loss = module((volume, (volume > 0.5).float()))["total"]
    loss.backward()
    moved = {name: p.grad is not None and bool(p.grad.abs().sum() > 0)
             for name, p in module.named_parameters()}  # fmt: skip
    assert all(got for name, got in moved.items() if ".encoder." not in name)
    assert any(got for name, got in moved.items() if ".encoder." in name) == train_encoder


def test_loss_is_dice_with_squares_and_cross_entropy_by_hand() -> None:
    """Two voxels of three classes, with uniform logits: p = 1/3 everywhere."""
    module = DiceCrossEntropy(nn.Identity())
    logits = torch.zeros(1, 3, 1, 1, 2)
    mask = torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 1, 2)
    # Classes 0 and 2: 2 * 1/3 / (1 + 2/9); class 1: 0 / (0 + 2/9).
    dice = 1 - (2 * (2 / 3) / (1 + 2 / 9)) / 3
    expected = dice + torch.log(torch.tensor(3.0)).item()
    assert module((logits, mask))["total"].item() == pytest.approx(expected, abs=1e-4)
