"""Published weights: the layout of spec/model 2.3, written here name by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mg3d.models.vision import LegacyPatchMerging, SwinEncoder
from mg3d.params import VisionEncoder
from mg3d.training.checkpoint import Coverage
from mg3d.training.published import load_published

Tensors = dict[str, Tensor]


def published(width: int, prefix: str = "vision_encoder.", projector: bool = False) -> Tensors:
    """Random weights under the published names."""
    generator = torch.Generator().manual_seed(width)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    corners = torch.cartesian_prod(*[torch.arange(7)] * 3)
    offset = corners[:, None] - corners[None] + 6
    index = (offset * torch.tensor([169, 13, 1])).sum(-1)
    tensors = {
        "patch_embed.proj.weight": random(width, 1, 2, 2, 2),
        "patch_embed.proj.bias": random(width),
    }
    for level, heads in enumerate((3, 6, 12, 24)):
        c = width * 2**level
        stem = f"layers{level + 1}.0"
        for block in (f"{stem}.blocks.0", f"{stem}.blocks.1"):
            for norm in ("norm1", "norm2"):
                tensors[f"{block}.{norm}.weight"] = 1 + random(c)
                tensors[f"{block}.{norm}.bias"] = random(c)
            tensors[f"{block}.attn.relative_position_bias_table"] = random(2197, heads)
            tensors[f"{block}.attn.relative_position_index"] = index.clone()
            for layer, after, before in (
                ("attn.qkv", 3 * c, c),
                ("attn.proj", c, c),
                ("mlp.linear1", 4 * c, c),
                ("mlp.linear2", c, 4 * c),
            ):
                tensors[f"{block}.{layer}.weight"] = random(after, before)
                tensors[f"{block}.{layer}.bias"] = random(after)
        tensors[f"{stem}.downsample.reduction.weight"] = random(2 * c, 8 * c)
        tensors[f"{stem}.downsample.norm.weight"] = 1 + random(8 * c)
        tensors[f"{stem}.downsample.norm.bias"] = random(8 * c)
    if projector:
        for layer, before in (("layer1.0", 16 * width), ("layer2.0", 768), ("layer3.0", 768)):
            tensors[f"proj_head.{layer}.weight"] = random(768, before)
            tensors[f"proj_head.{layer}.bias"] = random(768)
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def swin_b() -> Tensors:
    return published(48)


def _write(folder: Path, tensors: Tensors) -> Path:
    save_file(tensors, folder / "published.safetensors")
    return folder / "published.safetensors"


#: Other parts of the published module.
REST = {
    "multi_modal_vision_proj.weight": torch.ones(8, 8),
    "modality_type_embeddings.weight": torch.ones(2, 8),
}


@pytest.mark.parametrize("outer", ["", "state_dict.", "state_dict.module."])
@pytest.mark.parametrize("inner", ["", "swinViT."])
def test_published_weights_are_loaded_whole_and_legacy(
    outer: str, inner: str, swin_b: Tensors, tmp_path: Path
) -> None:
    bare = {name[15:]: tensor for name, tensor in swin_b.items()}
    assert len(bare) == 126
    tensors = {f"{outer}vision_encoder.{inner}{name}": tensor for name, tensor in bare.items()}
    loaded = load_published(_write(tmp_path, tensors | REST))
    assert loaded.coverage == Coverage(loaded=126, missing=0, unexpected=0, mismatched=0)
    assert loaded.beside == ()
    assert loaded.params == VisionEncoder(merging="legacy")
    mergings = [m for name, m in loaded.encoder.named_modules() if name.endswith("downsample")]
    assert [type(m) for m in mergings] == [LegacyPatchMerging] * 4
    assert not loaded.encoder.training
    for name, tensor in loaded.encoder.state_dict().items():
        assert torch.equal(tensor, bare[name]), name


def test_features_are_those_of_the_legacy_order_only(swin_b: Tensors, tmp_path: Path) -> None:
    encoder = load_published(_write(tmp_path, swin_b)).encoder
    volume = torch.rand(1, 1, 32, 32, 64, generator=torch.Generator().manual_seed(0))
    features = {}
    for merging in ("legacy", "fixed"):
        other = SwinEncoder(VisionEncoder(merging=merging)).eval()
        other.load_state_dict({name[15:]: tensor for name, tensor in swin_b.items()})
        with torch.no_grad():
            features[merging] = other.tokens(volume)
    with torch.no_grad():
        tokens = encoder.tokens(volume)
    assert torch.equal(tokens, features["legacy"])
    assert (tokens - features["fixed"]).abs().max() > 0.5


def test_the_projector_of_swin_l_is_named_and_no_part_of_the_encoder(tmp_path: Path) -> None:
    tensors = published(96, projector=True)
    loaded = load_published(_write(tmp_path, tensors), activation_checkpointing=True)
    assert loaded.coverage == Coverage(loaded=126, missing=0, unexpected=6, mismatched=0)
    assert loaded.beside == tuple(
        f"proj_head.layer{i}.0.{kind}" for i in (1, 2, 3) for kind in ("bias", "weight")
    )
    assert (loaded.encoder.channels, loaded.params.embed_dim) == (1536, 96)
    assert loaded.params.activation_checkpointing
    assert loaded.params.merging == "legacy"


def test_a_few_tensors_may_be_missing_and_are_counted(swin_b: Tensors, tmp_path: Path) -> None:
    indices = [name for name in swin_b if name.endswith("relative_position_index")]
    some = {name: tensor for name, tensor in swin_b.items() if name not in indices[:6]}
    coverage = load_published(_write(tmp_path, some)).coverage
    assert coverage == Coverage(loaded=120, missing=6, unexpected=0, mismatched=0)
    del some["vision_encoder." + "layers4.0.blocks.1.norm1.bias"]
    with pytest.raises(ValueError, match=r"covers 94% of Swin-B .*7 missing.*4 more; 95% are need"):
        load_published(_write(tmp_path, some))


def _change(tensors: Tensors, name: str, to: Tensor) -> Tensors:
    return tensors | {f"vision_encoder.{name}": to}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda all_: {k: t for k, t in all_.items() if "layers3" not in k},
            r"covers 75% of Swin-B .*31 missing.*'layers3.*fetch or convert",
        ),
        (
            lambda all_: _change(all_, "layers2.0.blocks.1.attn.proj.bias", torch.ones(95)),
            r"vision_encoder.layers2.0.blocks.1.attn.proj.bias is \[95\] and Swin-B has \[96\]",
        ),
        (
            lambda all_: _change(all_, "layers5.0.norm.bias", torch.ones(3)),
            r"1 tensors under vision_encoder. that Swin-B has not, 'layers5.0.norm.bias'",
        ),
        (
            lambda all_: _change(all_, "patch_embed.proj.weight", torch.ones(24, 1, 2, 2, 2)),
            r"width 24: published encoders have 48 \(Swin-B\), 96 \(Swin-L\)",
        ),
        (
            lambda all_: {f"swinViT.{name[15:]}": t for name, t in all_.items()},
            r"an encoder under 'swinViT.': published MG-3D encoders are under 'vision_encoder.'",
        ),
        (
            lambda all_: all_ | {f"ema.{name}": t.clone() for name, t in all_.items()},
            r"several encoders, under .*'ema.vision_encoder.'.*keep one",
        ),
        (lambda _: REST, r"no encoder, only 'modality_type_embeddings.weight', 'multi_modal"),
    ],
    ids=["half", "size", "unknown", "width", "prefix", "two", "none"],
)
def test_what_is_not_the_published_layout_is_refused(
    change: object, message: str, swin_b: Tensors, tmp_path: Path
) -> None:
    assert callable(change)
    with pytest.raises(ValueError, match=message):
        load_published(_write(tmp_path, change(swin_b)))


def test_a_damaged_file_is_refused(swin_b: Tensors, tmp_path: Path) -> None:
    file = _write(tmp_path, swin_b)
    content = file.read_bytes()
    for length in (0, 5, 1000, len(content) - 4):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"no readable safetensors file .*again"):
            load_published(file)
    with pytest.raises(ValueError, match=r"no readable safetensors file"):
        load_published(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ""])
def test_a_pickle_is_not_opened(suffix: str, tmp_path: Path) -> None:
    """It need not even exist: the name is enough."""
    with pytest.raises(
        ValueError, match=r"can run code.*convert it once with `mg3d import_weights"
    ):
        load_published(tmp_path / f"published{suffix}")
