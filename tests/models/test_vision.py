import itertools

import pytest
import torch
from monai.networks.nets.swin_unetr import PatchMerging, SwinUNETR

from mg3d.models.vision import LegacyPatchMerging, SwinEncoder
from mg3d.params import VisionEncoder


@pytest.mark.parametrize(("embed_dim", "expected"), [(48, 8_062_002), (96, 31_593_474)])
def test_parameter_counts_of_the_two_sizes(embed_dim: int, expected: int) -> None:
    encoder = SwinEncoder(VisionEncoder(embed_dim=embed_dim))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected
    assert encoder.channels == 16 * embed_dim
    assert len(encoder.state_dict()) == 126


def test_keys_and_shapes_are_those_of_swin_unetr() -> None:
    ours = SwinEncoder(VisionEncoder(embed_dim=12)).state_dict()
    unetr = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, use_v2=False).state_dict()
    theirs = {
        name.removeprefix("swinViT."): value.shape
        for name, value in unetr.items()
        if name.startswith("swinViT.")
    }
    assert {name: value.shape for name, value in ours.items()} == theirs


def _merged_by_index(x: torch.Tensor, order: list[str]) -> torch.Tensor:
    """Concatenated neighbours of each 2x2x2 block, one scalar at a time. [B, D, H, W, C]."""
    batch, depth, height, width, channels = x.shape
    out = torch.empty(batch, depth // 2, height // 2, width // 2, 8 * channels, dtype=x.dtype)
    for b, z, y, w in itertools.product(
        range(batch), range(depth // 2), range(height // 2), range(width // 2)
    ):
        for position, bits in enumerate(order):
            dz, dy, dx = map(int, bits)
            for c in range(channels):
                out[b, z, y, w, position * channels + c] = x[
                    b, 2 * z + dz, 2 * y + dy, 2 * w + dx, c
                ]
    return out


@pytest.mark.parametrize(
    ("merging", "order"),
    [
        (LegacyPatchMerging, "000 100 010 001 101 010 001 111"),
        (PatchMerging, "000 100 010 001 110 101 011 111"),  # the installed MONAI's
    ],
)
def test_merging_reads_neighbours_in_its_order(merging: type, order: str) -> None:
    torch.manual_seed(0)
    layer = merging(dim=3).double()
    x = torch.randn(2, 4, 2, 6, 3, dtype=torch.float64)
    expected = layer.reduction(layer.norm(_merged_by_index(x, order.split())))
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


def test_same_weights_other_merging_other_features(tiny_vision: VisionEncoder) -> None:
    """What would go wrong silently when released weights are loaded with the fixed order."""
    fixed = SwinEncoder(tiny_vision)
    legacy = SwinEncoder(tiny_vision.model_copy(update={"merging": "legacy"}))
    legacy.load_state_dict(fixed.state_dict())
    volume = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert (fixed.tokens(volume) - legacy.tokens(volume)).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(32, 32, 32), (64, 32, 96), (32, 64, 32)])
def test_tokens_are_the_normalised_last_map_in_z_major_order(
    tiny_vision: VisionEncoder, shape: tuple[int, int, int]
) -> None:
    encoder = SwinEncoder(tiny_vision)
    volume = torch.rand(2, 1, *shape)
    with torch.no_grad():
        tokens, maps, features = encoder.tokens(volume), encoder(volume), encoder.features(volume)
        raw = encoder.last_map(volume)
    depth, height, width = encoder.grid(volume)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (4 * 2**i, *(size // 2 ** (i + 1) for size in shape)) for i in range(5)
    ]
    assert tokens.shape == (2, depth * height * width, encoder.channels)
    for z, y, x in itertools.product(range(depth), range(height), range(width)):
        token = tokens[:, (z * height + y) * width + x]
        torch.testing.assert_close(token, maps[-1][:, :, z, y, x], atol=1e-5, rtol=1e-4)
        vector = raw[:, :, z, y, x].double()
        expected = (vector - vector.mean(1, keepdim=True)) / (
            vector.var(1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        torch.testing.assert_close(token.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features, raw.flatten(2).mean(2))


def test_activation_checkpointing_changes_no_value_and_no_gradient(
    tiny_vision: VisionEncoder,
) -> None:
    plain = SwinEncoder(tiny_vision)
    thrifty = SwinEncoder(tiny_vision.model_copy(update={"activation_checkpointing": True}))
    thrifty.load_state_dict(plain.state_dict())
    volume = torch.rand(1, 1, 32, 32, 32)
    for encoder in (plain, thrifty):
        encoder.features(volume).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 48, 32, 32), r"\(48, 32, 32\).*multiple of 32.*contract.shape_voxels"),
        ((1, 2, 32, 32, 32), r"\(1, 2, 32, 32, 32\): expected \[B, 1, D, H, W\]"),
        ((1, 32, 32, 32), r"expected \[B, 1, D, H, W\]"),
    ],
)
def test_a_wrong_volume_is_refused(
    tiny_vision: VisionEncoder, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SwinEncoder(tiny_vision).tokens(torch.zeros(shape))
