"""Heads on top of fused features (spec/model 2.1, 3, 4.2, 4.3, 4.5, 4.6)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

#: Width of the SFR comparison and of the sentence-informed visual features.
SFR_WIDTH = 8
SSM_WIDTH = 128


class ChannelNorm(nn.Module):
    """LN₀: LayerNorm over the last axis without parameters.

    The reference's BatchNorm1d on [1, S, C] computes this for one report (spec/model 0.6); as LN₀
    it stays independent of the other samples when batched.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:])


def token_projector(channels: int, width: int) -> nn.Sequential:
    """Swin-L's projector of the tokens, [..., channels] -> [..., width] (spec/model 2.1)."""
    return nn.Sequential(
        nn.Linear(channels, width),
        ChannelNorm(),
        nn.ReLU(),
        nn.Linear(width, width),
        ChannelNorm(),
        nn.ReLU(),
        nn.Linear(width, width),
    )


def contrastive_head(width: int, out_width: int) -> nn.Sequential:
    """[B, width] -> [B, out_width]: LayerNorm, Linear without bias (spec/model 4.5)."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out_width, bias=False))


def sfr_prediction_head(width: int) -> nn.Sequential:
    """[B, S, E] -> [B, S, 8] (spec/model 3)."""
    return nn.Sequential(nn.Linear(width, 128), ChannelNorm(), nn.GELU(), nn.Linear(128, SFR_WIDTH))


def sfr_target_head(width: int) -> nn.Sequential:
    """[B, S, E] -> [B, S, 8], a frozen random map: a learned one can collapse (spec/model 4.2).

    Its biases are zero: random ones are larger than the features of a small encoder and would make
    all targets alike (mean cosine between MiniLM sentences 0.93 instead of 0.77).
    """
    head = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, SFR_WIDTH))
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return head.requires_grad_(False)


def ssm_head(width: int) -> nn.Sequential:
    """[B, S, E] -> sentence-informed visual features [B, S, 128] (spec/model 4.6)."""
    return nn.Sequential(
        nn.Linear(width, width // 2),
        ChannelNorm(),
        nn.GELU(),
        nn.Linear(width // 2, SSM_WIDTH),
        nn.Tanh(),
    )


class MaskedWordHead(nn.Module):
    """Words from fused text tokens (spec/model 4.2); the decoder is not tied to the embeddings."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, transformed: Tensor, labels: Tensor) -> Tensor:
        """Logits at the labelled positions only: [B, L, E] after ``transform``, [B, L] -> [M, V].

        Rows are in the order of ``labels != -100``.
        """
        return self.decoder(transformed[labels != -100])


class VolumeDecoder(nn.Module):
    """Image tokens -> volume (spec/model 4.3): five times convolution, norm, LeakyReLU, doubling.

    The widths are W/2, W/4, W/8, W/16, W/16 for ``decoder_width`` W, which is E in the reference.
    """

    def __init__(self, width: int, decoder_width: int | None = None) -> None:
        super().__init__()
        widths = [width, *((decoder_width or width) // factor for factor in (2, 4, 8, 16, 16))]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(before, after, 3, padding=1),
                nn.InstanceNorm3d(after),
                nn.LeakyReLU(0.01),
            )
            for before, after in pairwise(widths)
        )
        self.out = nn.Conv3d(widths[-1], 1, 1)

    def forward(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[B, N, E] on a token grid (z, y, x) -> [B, 1, 32 z, 32 y, 32 x].

        Raises ValueError for a grid of one token, whose instance norm is not defined.
        """
        if tokens.shape[1] == 1:
            raise ValueError(
                "masked image modelling needs more than one token per volume: make a size of "
                "contract.shape_voxels 64 or more, or set objective.mim_weight to 0"
            )
        x = tokens.transpose(1, 2).unflatten(2, grid)
        *inner, last = self.blocks
        for block in inner:
            x = _double(block(x))
        # A 1x1 convolution and a trilinear doubling commute (both are linear, and the doubling's
        # weights sum to one); in this order the finest grid holds one channel.
        return _double(self.out(last(x)))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
