"""Vision encoders (spec/model 2): volume -> maps, tokens, features, behind one interface.

`SwinEncoder` is MONAI's Swin, with the reference's patch merging as an option; `UNet3DEncoder` the
Models-Genesis-like 3D U-Net of spec/model 2.2; `DynUNetEncoder` the encoder of MONAI's DynUNet
(nnU-Net style). All end at stride 32 with 16C channels, C = ``embed_dim``, so they are
interchangeable before the tokens; `vision_encoder` builds the one that the params name.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.swin_unetr import PatchMergingV2, SwinTransformer
from torch import Tensor, cat, nn
from torch.utils.checkpoint import checkpoint

from mg3d.models.window_attention import tile_windows
from mg3d.params import VisionEncoder

#: Every encoder halves each axis five times on the way to its tokens.
STRIDE_VOXELS = 32

#: Groups of channels that `DynUNetEncoder` normalises together, where they divide its width.
NUM_NORM_GROUPS = 8

#: Neighbour offsets (z, y, x) in the reference's concatenation order (spec/model 2.3): 010 and 001
#: are read twice, 110 and 011 never. Released weights only make sense with exactly this order.
LEGACY_OFFSETS = (
    (0, 0, 0),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 0, 1),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 1),
)


class LegacyPatchMerging(PatchMergingV2):
    """2x2x2 merging in the reference's order; parameters and names are those of MONAI's merging."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W, C] -> [B, D/2, H/2, W/2, 2C] (odd sizes are padded at their end)."""
        _, depth, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        x = cat([x[:, z::2, y::2, x_::2, :] for z, y, x_ in LEGACY_OFFSETS], dim=-1)
        return self.reduction(self.norm(x))


class VolumeEncoder(nn.Module):
    """What every vision encoder offers. Calling it gives its maps, finest first."""

    #: Channels of the last map.
    channels: int
    #: Stride of each map in voxels; the last is `STRIDE_VOXELS`.
    strides: tuple[int, ...] = (2, 4, 8, 16, STRIDE_VOXELS)

    def grid(self, volume: Tensor) -> tuple[int, int, int]:
        """Token grid (z, y, x) of a volume [B, 1, D, H, W]; N is its product.

        Raises ValueError for another number of axes or channels, and for sizes that 32 does not
        divide.
        """
        if volume.ndim != 5 or volume.shape[1] != 1:
            raise ValueError(f"volume of shape {tuple(volume.shape)}: expected [B, 1, D, H, W]")
        if any(size % STRIDE_VOXELS or not size for size in volume.shape[2:]):
            raise ValueError(
                f"volume of {tuple(volume.shape[2:])} voxels: each size must be a multiple of "
                f"{STRIDE_VOXELS}; pad the volume or change contract.shape_voxels"
            )
        depth, height, width = (size // STRIDE_VOXELS for size in volume.shape[2:])
        return depth, height, width

    def last_map(self, volume: Tensor) -> Tensor:
        """[B, 1, D, H, W] -> the last map, not normalised, [B, 16C, D/32, H/32, W/32]."""
        return self(volume)[-1]

    def tokens(self, volume: Tensor) -> Tensor:
        """[B, 1, D, H, W] -> tokens of the last map, LN₀-normalised, z-major, [B, N, 16C]."""
        return tokens_of(self.last_map(volume))

    def features(self, volume: Tensor) -> Tensor:
        """[B, 1, D, H, W] -> mean of the un-normalised last map, [B, 16C] (spec/model 9)."""
        return features_of(self.last_map(volume))


def tokens_of(last_map: Tensor) -> Tensor:
    """`VolumeEncoder.tokens` from the last map: [B, 16C, z, y, x] -> [B, N, 16C]."""
    tokens = last_map.flatten(2).transpose(1, 2)
    return F.layer_norm(tokens, tokens.shape[-1:])


def features_of(last_map: Tensor) -> Tensor:
    """`VolumeEncoder.features` from the last map: [B, 16C, z, y, x] -> [B, 16C]."""
    return last_map.mean(dim=(2, 3, 4))


class SwinEncoder(SwinTransformer, VolumeEncoder):
    """Volume -> feature maps; the state dict has MONAI's `SwinTransformer` keys and nothing else.

    ``forward(volume, normalize=True)`` is MONAI's: five maps [B, C·2^i, D/2^(i+1), H/.., W/..] for
    i = 0..4 with C = embed_dim, each normalised over its channels if ``normalize``.
    """

    def __init__(self, params: VisionEncoder) -> None:
        super().__init__(
            in_chans=1,
            embed_dim=params.embed_dim,
            window_size=(params.window_voxels,) * 3,
            patch_size=(2, 2, 2),
            depths=params.depths,
            num_heads=params.num_heads,
            use_checkpoint=params.activation_checkpointing,
            downsample=LegacyPatchMerging if params.merging == "legacy" else "merging",
        )
        tile_windows(self)
        self.channels = 16 * params.embed_dim

    def last_map(self, volume: Tensor) -> Tensor:
        """[B, 1, D, H, W] -> the last map, not normalised, [B, 16C, D/32, H/32, W/32]."""
        self.grid(volume)
        return self(volume, normalize=False)[-1]


class UNet3DEncoder(VolumeEncoder):
    """The 3D U-Net encoder of spec/model 2.2: four levels of two convolutions, then 4³ averages.

    ``forward(volume)``: maps [B, 2C·2^d, D/2^d, ..] for d = 0..3, and the last one averaged over
    4³ blocks. The reference normalises with the statistics of the batch also in evaluation, so one
    patient's features depend on the others'; instance norm is the same for one volume, and keeps
    samples, ranks and parts of an accumulated batch apart. Convolutions have no bias: the norm
    would cancel it.
    """

    strides = (1, 2, 4, 8, STRIDE_VOXELS)

    def __init__(self, params: VisionEncoder) -> None:
        super().__init__()
        self.channels = 16 * params.embed_dim
        self.activation_checkpointing = params.activation_checkpointing
        widths = [params.embed_dim * 2**level for level in range(5)]
        self.levels = nn.ModuleList(  # a level ends with the channels that the next one keeps
            nn.Sequential(
                *_convolution(1 if level == 0 else width, width), *_convolution(width, after)
            )
            for level, (width, after) in enumerate(pairwise(widths))
        )

    def forward(self, volume: Tensor) -> list[Tensor]:
        """[B, 1, D, H, W] -> five maps."""
        self.grid(volume)
        maps: list[Tensor] = []
        for level in self.levels:
            x = F.max_pool3d(maps[-1], 2) if maps else volume
            maps.append(_run(level, x, self.activation_checkpointing))
        return [*maps, F.avg_pool3d(maps[-1], 4)]


def _convolution(before: int, after: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv3d(before, after, 3, padding=1, bias=False),
        nn.InstanceNorm3d(after, affine=True),
        nn.ReLU(inplace=True),
    )


class DynUNetEncoder(VolumeEncoder):
    """The encoder of MONAI's `DynUNet`: nnU-Net's blocks, keys and initialisation.

    ``forward(volume)``: maps [B, C·2^i, D/2^(i+1), ..] for i = 0..4, as the Swin's. The block
    before them, at full resolution, has C/2 channels. nnU-Net's instance norm takes the mean of
    each channel out of the last map, which is what a pooled feature reads (with two tokens, volumes
    become nearly alike), and is not defined for one voxel: here the norm is over groups.
    """

    def __init__(self, params: VisionEncoder) -> None:
        super().__init__()
        self.channels = 16 * params.embed_dim
        self.activation_checkpointing = params.activation_checkpointing
        widths = [params.embed_dim * 2**i // 2 for i in range(6)]
        self.input_block = _dynunet_block(1, widths[0], stride=1)
        *downsamples, self.bottleneck = (
            _dynunet_block(before, after, stride=2) for before, after in pairwise(widths)
        )
        self.downsamples = nn.ModuleList(downsamples)
        self.apply(DynUNet.initialize_weights)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """[B, 1, D, H, W] -> five maps."""
        self.grid(volume)
        x = _run(self.input_block, volume, self.activation_checkpointing)
        maps: list[Tensor] = []
        for block in (*self.downsamples, self.bottleneck):
            x = _run(block, x, self.activation_checkpointing)
            maps.append(x)
        return maps


def _dynunet_block(before: int, after: int, stride: int) -> UnetBasicBlock:
    norm = ("group", {"num_groups": math.gcd(after, NUM_NORM_GROUPS)})
    return UnetBasicBlock(3, before, after, kernel_size=3, stride=stride, norm_name=norm)


def _run(block: nn.Module, x: Tensor, activation_checkpointing: bool) -> Tensor:
    if activation_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False)
    return block(x)


def vision_encoder(params: VisionEncoder) -> VolumeEncoder:
    """The encoder that ``params.name`` names, with random weights."""
    kinds = {"swin": SwinEncoder, "unet3d": UNet3DEncoder, "dynunet": DynUNetEncoder}
    return kinds[params.name](params)
