"""The 3D Swin encoder (spec/model 2): MONAI's, with the reference's patch merging as an option."""

import torch.nn.functional as F
from monai.networks.nets.swin_unetr import PatchMergingV2, SwinTransformer
from torch import Tensor, cat

from mg3d.params import VisionEncoder

#: The encoder halves each axis five times: patch 2, then four mergings.
STRIDE_VOXELS = 32

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


class SwinEncoder(SwinTransformer):
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
        #: Channels of the last map.
        self.channels = 16 * params.embed_dim

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
        self.grid(volume)
        return self(volume, normalize=False)[-1]

    def tokens(self, volume: Tensor) -> Tensor:
        """[B, 1, D, H, W] -> tokens of the last map, LN₀-normalised, z-major, [B, N, 16C]."""
        tokens = self.last_map(volume).flatten(2).transpose(1, 2)
        return F.layer_norm(tokens, tokens.shape[-1:])

    def features(self, volume: Tensor) -> Tensor:
        """[B, 1, D, H, W] -> mean of the un-normalised last map, [B, 16C] (spec/model 9)."""
        return self.last_map(volume).mean(dim=(2, 3, 4))
