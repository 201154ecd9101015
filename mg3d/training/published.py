"""The published MG-3D weights: their vision encoder, a Swin always with the legacy patch merging.

A published file is the state dict of the whole module, bare or under a key such as ``state_dict``.
Its encoder is Swin-B, Swin-L or the 3D U-Net under ``vision_encoder.``; the tensors say which. All
names and shapes of a Swin fit one of today too, so nothing but the merging order tells right
features from wrong ones (spec/model 2.3): it is not a parameter here. The file knows no volume
contract: who uses the encoder says how volumes are made. `load_published` reads safetensors only;
`mg3d import_weights` is the one place where a pickle is opened, as weights only.

No published file was at hand: the layouts are those of the published code. The U-Net's names are
Models Genesis'; its norm takes the batch's statistics also in evaluation, which for one volume is
our instance norm. A U-Net that was trained to use running statistics has the same names: it would
be read, and would be wrong (spec/model 2.2 names such a variant).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mg3d.params import VisionEncoder
from mg3d.training.checkpoint import ENCODER_PREFIX, MIN_COVERAGE, Coverage, load_matching

if TYPE_CHECKING:  # imports monai, which takes seconds
    from mg3d.models.vision import VolumeEncoder

#: ``embed_dim`` of the two published sizes.
SIZES = {48: "Swin-B", 96: "Swin-L"}

#: Published with the encoder and no part of it: Swin-L's projector, the skip convolutions of UNETR.
BESIDE_THE_ENCODER = re.compile(r"proj_head\.|encoder\d+\.")

#: A tensor that every Swin has; what comes before its name is the prefix of all. And a U-Net's.
LANDMARK = "patch_embed.proj.weight"
UNET_LANDMARK = "down_tr64.ops.0.conv1.weight"
UNET_LEVELS = ("down_tr64", "down_tr128", "down_tr256", "down_tr512")
#: Convolution biases, which the norm cancels, and statistics that are never used; the decoder.
BESIDE_THE_UNET = re.compile(r".*\.conv1\.bias|.*\.bn1\.(running_|num_batches_).*|(up_tr|out_tr).*")
PREFIX = re.compile(rf"(.*\.)?{re.escape(ENCODER_PREFIX)}(swinViT\.)?")


@dataclass(frozen=True)
class PublishedEncoder:
    """The encoder of a published file, in eval mode on the CPU."""

    encoder: "VolumeEncoder"
    params: VisionEncoder  # what it was built with; a Swin's merging is legacy
    coverage: Coverage  # unexpected: those of `beside`
    beside: tuple[str, ...]  # names published with the encoder that are no part of it


def load_published(file: Path, activation_checkpointing: bool = False) -> PublishedEncoder:
    """Read the vision encoder of a published safetensors file.

    Raises ValueError for another kind of file or a damaged one, another prefix or width, unknown
    names, other sizes, and where under 95 % of the encoder's tensors are found.
    """
    return published_encoder(_read(file), file, activation_checkpointing)


def published_encoder(
    tensors: Mapping[str, Tensor], file: Path, activation_checkpointing: bool = False
) -> PublishedEncoder:
    """The same from a file's tensors by name; ``file`` is for the messages."""
    prefix = _prefix(file, tensors)
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    if UNET_LANDMARK in weights:
        return _unet(file, weights, activation_checkpointing)
    beside = tuple(sorted(name for name in weights if BESIDE_THE_ENCODER.match(name)))
    params = VisionEncoder(
        embed_dim=_width(file, weights[LANDMARK]),
        merging="legacy",
        activation_checkpointing=activation_checkpointing,
    )

    from mg3d.models.vision import SwinEncoder

    encoder = SwinEncoder(params).eval()
    own = encoder.state_dict()
    if unknown := sorted(weights.keys() - own.keys() - set(beside)):
        raise ValueError(
            f"{file} has {len(unknown)} tensors under {prefix} that {SIZES[params.embed_dim]} has "
            f"not, {_some(unknown)}: it is of another architecture; use the weights of Swin-B or "
            "Swin-L"
        )
    for name in own.keys() & weights.keys():
        if own[name].shape != weights[name].shape:
            raise ValueError(
                f"{file}: {prefix}{name} is {list(weights[name].shape)} and "
                f"{SIZES[params.embed_dim]} has {list(own[name].shape)}: use the weights of Swin-B "
                "or Swin-L with windows of 7 voxels and heads 3, 6, 12, 24"
            )
    coverage = _loaded(file, encoder, weights, SIZES[params.embed_dim])
    return PublishedEncoder(encoder, params, coverage, beside)


def _unet(
    file: Path, weights: Mapping[str, Tensor], activation_checkpointing: bool
) -> PublishedEncoder:
    """The 3D U-Net of spec/model 2.2 under Models Genesis' names; its width is the file's."""
    params = VisionEncoder(
        name="unet3d",
        embed_dim=weights[UNET_LANDMARK].shape[0],
        activation_checkpointing=activation_checkpointing,
    )
    ours = {
        f"{level}.ops.{convolution}.{layer}": f"levels.{depth}.{3 * convolution + offset}.{kind}"
        for depth, level in enumerate(UNET_LEVELS)
        for convolution in (0, 1)
        for layer, offset, kind in (
            ("conv1.weight", 0, "weight"),
            ("bn1.weight", 1, "weight"),
            ("bn1.bias", 1, "bias"),
        )
    }
    beside = tuple(sorted(name for name in weights if BESIDE_THE_UNET.match(name)))
    if unknown := sorted(weights.keys() - ours.keys() - set(beside)):
        raise ValueError(
            f"{file} has {len(unknown)} tensors that the 3D U-Net has not, {_some(unknown)}: it is "
            "of another architecture; use the weights of Swin-B, Swin-L or the 3D U-Net"
        )

    from mg3d.models.vision import UNet3DEncoder

    encoder = UNet3DEncoder(params).eval()
    renamed = {ours.get(name, name): tensor for name, tensor in weights.items()}
    return PublishedEncoder(encoder, params, _loaded(file, encoder, renamed, "3D U-Net"), beside)


def _loaded(file: Path, encoder: nn.Module, weights: Mapping[str, Tensor], name: str) -> Coverage:
    own = encoder.state_dict()
    coverage = load_matching(encoder, weights)
    if coverage.fraction < MIN_COVERAGE:
        raise ValueError(
            f"{file} covers {coverage.fraction:.0%} of {name} ({coverage}), "
            f"without {_some(sorted(own.keys() - weights.keys()))}; {MIN_COVERAGE:.0%} are needed: "
            "fetch or convert the file again"
        )
    return coverage


def _read(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    if file.suffix != ".safetensors":
        raise ValueError(
            f"{file} is not a .safetensors file, and others (pickles) can run code when they are "
            f"read: convert it once with `mg3d import_weights {file} --out runs/imported`, which "
            "reads weights only"
        )
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{file} is no readable safetensors file ({error}): fetch or convert it again"
        ) from None


def _prefix(file: Path, names: Iterable[str]) -> str:
    found = [
        name.removesuffix(landmark)
        for name in names
        for landmark in (LANDMARK, UNET_LANDMARK)
        if name.endswith(landmark)
    ]
    fitting = [prefix for prefix in found if PREFIX.fullmatch(prefix)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"{file} holds several encoders, under {_some(fitting)}: keep one of them")
    under = (
        f"an encoder under {_some(found)}" if found else f"no encoder, only {_some(sorted(names))}"
    )
    raise ValueError(
        f"{file} has {under}: published MG-3D encoders are under {ENCODER_PREFIX!r}. Which order "
        "of patch merging others were trained with is not known"
    )


def _width(file: Path, projection: Tensor) -> int:
    width = projection.shape[0]
    if width not in SIZES:
        known = ", ".join(f"{known} ({name})" for known, name in SIZES.items())
        raise ValueError(f"{file} is of width {width}: published encoders have {known}")
    return width


def _some(names: list[str]) -> str:
    """The first three, quoted."""
    shown = ", ".join(repr(name) for name in names[:3]) or "no tensor"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
