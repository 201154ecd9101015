import itertools

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.swin_unetr import PatchMerging, SwinUNETR
from torch import nn

from mg3d.models.vision import (
    DynUNetEncoder,
    LegacyPatchMerging,
    SwinEncoder,
    UNet3DEncoder,
    VolumeEncoder,
    vision_encoder,
)
from mg3d.params import VisionEncoder

NAMES = ["swin", "unet3d", "dynunet"]


def _build(tiny: VisionEncoder, name: str, **changes: object) -> VolumeEncoder:
    torch.manual_seed(0)
    return vision_encoder(tiny.model_copy(update={"name": name, **changes}))


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


@pytest.mark.parametrize(
    ("shape", "num_tokens"), [((128, 96, 128), 48), ((96, 96, 96), 27), ((64, 64, 64), 8)]
)
def test_tokens_of_swin_b_at_the_published_sizes(
    shape: tuple[int, int, int], num_tokens: int
) -> None:
    torch.manual_seed(0)
    encoder = SwinEncoder(VisionEncoder()).eval()
    with torch.inference_mode():
        tokens = encoder.tokens(torch.rand(1, 1, *shape))
    assert tokens.shape == (1, num_tokens, 768)
    assert tokens.isfinite().all()
    assert tokens.std(dim=1).min() > 0  # the tokens of different places differ


@pytest.mark.parametrize(
    ("name", "kind"),
    [("swin", SwinEncoder), ("unet3d", UNet3DEncoder), ("dynunet", DynUNetEncoder)],
)
def test_the_name_chooses_the_encoder(tiny_vision: VisionEncoder, name: str, kind: type) -> None:
    assert type(_build(tiny_vision, name)) is kind


#: Convolutions of 27 weights per pair of channels, then scale and shift of each norm.
UNET3D = 27 * (
    1 * 48 + 48 * 96 + 96 * 96 + 96 * 192 + 192 * 192 + 192 * 384 + 384 * 384 + 384 * 768
) + 2 * (48 + 96 + 96 + 192 + 192 + 384 + 384 + 768)
DYNUNET = 27 * (
    1 * 24 + 24 * 48 + 48 * 96 + 96 * 192 + 192 * 384 + 384 * 768
    + 24**2 + 48**2 + 96**2 + 192**2 + 384**2 + 768**2
) + 4 * (24 + 48 + 96 + 192 + 384 + 768)  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), [("unet3d", UNET3D), ("dynunet", DYNUNET)])
def test_parameter_counts_of_the_convolutional_encoders(name: str, expected: int) -> None:
    with torch.device("meta"):
        encoder = vision_encoder(VisionEncoder(name=name))
    assert encoder.channels == 768
    counted = sum(parameter.numel() for parameter in encoder.parameters())
    assert counted == expected == {"unet3d": 15_806_448, "dynunet": 31_841_640}[name]


@pytest.mark.parametrize("shape", [(64, 32, 32), (64, 32, 96), (32, 64, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_every_encoder_keeps_the_interface(
    tiny_vision: VisionEncoder, name: str, shape: tuple[int, int, int]
) -> None:
    encoder, volume = _build(tiny_vision, name), torch.rand(2, 1, *shape)
    with torch.no_grad():
        maps, last, tokens = encoder(volume), encoder.last_map(volume), encoder.tokens(volume)
        features = encoder.features(volume)
    assert [tuple(m.shape[2:]) for m in maps] == [
        tuple(size // stride for size in shape) for stride in encoder.strides
    ]
    grid = encoder.grid(volume)
    assert grid == tuple(size // 32 for size in shape)
    assert last.shape == (2, encoder.channels, *grid)
    assert encoder.channels == 16 * tiny_vision.embed_dim
    expected = last.permute(0, 2, 3, 4, 1).reshape(2, -1, encoder.channels)  # z-major
    torch.testing.assert_close(tokens, F.layer_norm(expected, (encoder.channels,)))
    torch.testing.assert_close(features, last.mean((2, 3, 4)))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NAMES)
def test_a_volume_has_the_same_tokens_in_any_batch(
    tiny_vision: VisionEncoder, name: str, training: bool
) -> None:
    encoder = _build(tiny_vision, name).double().train(training)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    volume = torch.rand(3, 1, 64, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        together = encoder.tokens(volume)
        alone = torch.cat([encoder.tokens(one[None]) for one in volume])
    torch.testing.assert_close(alone, together, atol=1e-9, rtol=0)
    for key, value in encoder.state_dict().items():  # no running statistics
        assert torch.equal(value, before[key]), key


class PublishedUNet(nn.Module):
    """Spec/model 2.2, written down as it stands: biases, and norms that see the whole batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        pairs = [(1, width), (width, 2 * width)]
        for level in (1, 2, 3):
            pairs += [
                (width * 2**level, width * 2**level),
                (width * 2**level, width * 2 ** (level + 1)),
            ]
        self.convolutions = nn.ModuleList(nn.Conv3d(a, b, 3, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm3d(b, track_running_stats=False) for _, b in pairs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = zip(self.convolutions, self.norms, strict=True)
        for number, (convolution, norm) in enumerate(layers):
            if number in (2, 4, 6):
                x = F.max_pool3d(x, 2)
            x = F.relu(norm(convolution(x)))
        return F.avg_pool3d(x, 4)


def test_the_unet_of_one_volume_is_the_published_one(tiny_vision: VisionEncoder) -> None:
    """And of two is not: there, one patient's features move with the other's."""
    ours = _build(tiny_vision, "unet3d").double()
    published = PublishedUNet(tiny_vision.embed_dim).double()
    own = [m for m in ours.modules() if isinstance(m, nn.Conv3d | nn.InstanceNorm3d)]
    theirs = itertools.chain(*zip(published.convolutions, published.norms, strict=True))
    for mine, other in zip(own, theirs, strict=True):
        if isinstance(mine, nn.InstanceNorm3d):
            nn.init.normal_(mine.weight)
            nn.init.normal_(mine.bias)
        other.load_state_dict(mine.state_dict(), strict=False)  # their convolutions keep a bias
    volume = torch.rand(2, 1, 32, 64, 32, dtype=torch.float64)
    volume[1] *= 3
    with torch.no_grad():
        torch.testing.assert_close(
            ours.last_map(volume[:1]), published(volume[:1]), atol=1e-9, rtol=0
        )
        assert (published(volume)[:1] - published(volume[:1])).abs().max() > 0.01


def test_maps_and_keys_of_dynunet_are_those_of_monai() -> None:
    ours = _build(VisionEncoder(), "dynunet", embed_dim=16)
    theirs = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        kernel_size=[3] * 6,
        strides=[1, 2, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 5,
        filters=[8, 16, 32, 64, 128, 256],
        norm_name=("group", {"num_groups": 8}),
    )
    assert not theirs.load_state_dict(ours.state_dict(), strict=False).unexpected_keys
    volume, maps = torch.rand(2, 1, 64, 32, 32), []
    for block in (*theirs.downsamples, theirs.bottleneck):
        block.register_forward_hook(lambda *call: maps.append(call[2]))
    with torch.no_grad():
        theirs.eval()(volume)
        for mine, other in zip(ours(volume), maps, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", NAMES)
def test_activation_checkpointing_changes_no_value_and_no_gradient(
    tiny_vision: VisionEncoder, name: str
) -> None:
    plain = _build(tiny_vision, name)
    thrifty = _build(tiny_vision, name, activation_checkpointing=True)
    thrifty.load_state_dict(plain.state_dict())
    volume = torch.rand(1, 1, 64, 32, 32)
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
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_volume_is_refused(
    tiny_vision: VisionEncoder, name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _build(tiny_vision, name).tokens(torch.zeros(shape))


@pytest.mark.parametrize("name", NAMES)
def test_a_volume_of_one_token_is_enough(tiny_vision: VisionEncoder, name: str) -> None:
    """As the crops of segmentation are."""
    tokens = _build(tiny_vision, name).tokens(torch.rand(1, 1, 32, 32, 32))
    assert tokens.shape == (1, 1, 64)
    assert tokens.isfinite().all()


def test_features_of_dynunet_tell_a_bright_from_a_dark_volume(tiny_vision: VisionEncoder) -> None:
    """With a norm over the voxels of its last map (two here), the spread is 0.02."""
    encoder = _build(tiny_vision, "dynunet")
    brightness = torch.linspace(0.2, 1, 6).view(6, 1, 1, 1, 1)
    with torch.no_grad():
        features = encoder.features(brightness * torch.rand(6, 1, 64, 32, 32))
    assert features.std(0).mean() > 0.1 * features.square().mean().sqrt()
