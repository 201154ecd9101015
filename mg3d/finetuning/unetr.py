"""The network that segments, and its loss: a UNETR decoder on the encoder's maps."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mg3d.params import SegmentationTask

UNETR_STRIDES = (2, 4, 8, 16, 32)


class UNETR(nn.Module):
    """UNETR decoder (Hatamizadeh et al. 2022) on five maps at strides 2 to 32.

    MONAI's SwinUNETR, block for block, around an encoder that exists already; the norm is over
    groups of channels, because a crop's deepest map may be a single voxel. Background is a channel
    of its own beside ``num_classes``. Raises ValueError for an encoder with other maps.
    """

    def __init__(self, encoder: Any, train_encoder: bool, num_classes: int = 1) -> None:
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
        self.out = UnetOutBlock(spatial_dims=3, in_channels=width, out_channels=1 + num_classes)

    def forward(self, volume: Tensor) -> Tensor:
        """[B, 1, D, H, W] -> logits of background and classes [B, 1 + classes, D, H, W]."""
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
    """Network and loss: (volume, mask of class numbers, both [B,1,D,H,W]) -> named losses.

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


@torch.inference_mode()
def window_by_window(
    network: nn.Module, volume: np.ndarray, params: SegmentationTask
) -> np.ndarray:
    """Probabilities [1 + classes, D, H, W] of ``volume`` (D, H, W); windows overlap, as a Gaussian
    weighs them."""
    from monai.inferers.utils import sliding_window_inference

    logits: Any = sliding_window_inference(
        torch.from_numpy(volume)[None, None].to(next(network.parameters()).device),
        params.crop_voxels,
        sw_batch_size=4,
        predictor=network,
        overlap=params.window_overlap_fraction,
        mode="gaussian",
    )
    return logits.softmax(1)[0].cpu().numpy()
