"""The published MG-3D weights: their vision encoder, always with the legacy patch merging.

A published file is the state dict of the whole module, bare or under a key such as ``state_dict``.
Its encoder is Swin-B or Swin-L under ``vision_encoder.``; the tensors say which. All of its names
and shapes fit a Swin of today too, so nothing but the merging order tells right features from wrong
ones (spec/model 2.3): it is not a parameter here. The file knows no volume contract: who uses the
encoder says how volumes are made. Files are safetensors; a pickle is never opened.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mg3d.params import VisionEncoder
from mg3d.training.checkpoint import ENCODER_PREFIX, MIN_COVERAGE, Coverage, load_matching

if TYPE_CHECKING:  # imports monai, which takes seconds
    from mg3d.models.vision import SwinEncoder

#: ``embed_dim`` of the two published sizes.
SIZES = {48: "Swin-B", 96: "Swin-L"}

#: Published with the encoder and no part of it: Swin-L's projector, the skip convolutions of UNETR.
BESIDE_THE_ENCODER = re.compile(r"proj_head\.|encoder\d+\.")

#: A tensor that every Swin has; what comes before its name is the prefix of all.
LANDMARK = "patch_embed.proj.weight"
PREFIX = re.compile(rf"(.*\.)?{re.escape(ENCODER_PREFIX)}(swinViT\.)?")

CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "w = torch.load('{file}', map_location='cpu', weights_only=True); w = w.get('state_dict', w); "
    "save_file({{k: t.clone() for k, t in w.items()}}, '{converted}')\""
)


@dataclass(frozen=True)
class PublishedEncoder:
    """The encoder of a published file, in eval mode on the CPU."""

    encoder: "SwinEncoder"
    params: VisionEncoder  # what it was built with; merging is legacy
    coverage: Coverage  # unexpected: those of `beside`
    beside: tuple[str, ...]  # names published with the encoder that are no part of it


def load_published(file: Path, activation_checkpointing: bool = False) -> PublishedEncoder:
    """Read the vision encoder of a published safetensors file.

    Raises ValueError for another kind of file or a damaged one, another prefix or width, unknown
    names, other sizes, and where under 95 % of the encoder's tensors are found.
    """
    weights, prefix = _encoder_weights(file)
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
    coverage = load_matching(encoder, weights)
    if coverage.fraction < MIN_COVERAGE:
        raise ValueError(
            f"{file} covers {coverage.fraction:.0%} of {SIZES[params.embed_dim]} ({coverage}), "
            f"without {_some(sorted(own.keys() - weights.keys()))}; {MIN_COVERAGE:.0%} are needed: "
            "fetch or convert the file again"
        )
    return PublishedEncoder(encoder, params, coverage, beside)


def _encoder_weights(file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors under the encoder's prefix, named without it, and the prefix."""
    if file.suffix != ".safetensors":
        command = CONVERT.format(file=file, converted=file.with_suffix(".safetensors"))
        raise ValueError(
            f"{file} is not a .safetensors file, and others (pickles) can run code when they are "
            f"read: convert it once, in an environment that may be lost, with\n  {command}"
        )
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            prefix = _prefix(file, names)
            found = [name for name in names if name.startswith(prefix)]
            return {name.removeprefix(prefix): opened.get_tensor(name) for name in found}, prefix
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{file} is no readable safetensors file ({error}): fetch or convert it again"
        ) from None


def _prefix(file: Path, names: Iterable[str]) -> str:
    found = [name.removesuffix(LANDMARK) for name in names if name.endswith(LANDMARK)]
    fitting = [prefix for prefix in found if PREFIX.fullmatch(prefix)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"{file} holds several encoders, under {_some(fitting)}: keep one of them")
    under = f"a Swin under {_some(found)}" if found else f"no Swin, only {_some(sorted(names))}"
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
