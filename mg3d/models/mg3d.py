"""MG-3D (spec/model 2 to 4): a vision encoder, a frozen text encoder, and what couples them.

The model computes what the objectives compare; the losses themselves live in `mg3d.objectives`.
Shapes: B batch, S sentences, L text tokens, N image tokens, E width (the text encoder's), V
vocabulary, M masked words; volumes are (B, C, D, H, W) with D/H/W = z/y/x.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg3d.models import decoders
from mg3d.models.fusion import (
    Aggregation,
    Fusion,
    FusionKind,
    ImagePool,
    Pool,
    SentencePool,
)
from mg3d.models.text import FrozenTextEncoder, sentence_means
from mg3d.models.vision import vision_encoder
from mg3d.params import Model, Objective


@dataclass(frozen=True)
class Inputs:
    """One batch, corrupted and whole."""

    volume: Tensor
    """[B, 1, D, H, W] in [0, 1]"""
    masked_volume: Tensor
    """[B, 1, D, H, W], 0 where ``voxel_mask``"""
    voxel_mask: Tensor
    """[B, 1, D, H, W] bool, True = masked"""
    input_ids: Tensor
    """[B, L] long"""
    masked_ids: Tensor
    """[B, L] long, ``input_ids`` after masking words"""
    mlm_labels: Tensor
    """[B, L] long, the original id of a chosen token, -100 elsewhere"""
    attention_mask: Tensor
    """[B, L], 1 = token, 0 = padding"""
    sentence_index: Tensor
    """[B, L] long, 0-based sentence of each token, -1 for [CLS], [SEP], [PAD]"""
    sentence_mask: Tensor
    """[B, S] bool, True = the report has this sentence"""
    sentence_means: Tensor | None = None
    """[B, S, E] of the whole report, as `embed_sentences` wrote them; None: encoded in the pass"""


@dataclass(frozen=True)
class Outputs:
    """What the objectives read. A field is None if no term with a weight needs it."""

    sentence_mask: Tensor
    """[B, S] bool, the sentences that have tokens"""
    mlm_logits: Tensor | None = None
    """[M, V], in the order of ``mlm_labels != -100``"""
    sfr_prediction: Tensor | None = None
    """[B, S, 8]"""
    sfr_target: Tensor | None = None
    """[B, S, 8], no gradient unless as published"""
    reconstruction: Tensor | None = None
    """[B, 1, D, H, W]"""
    cml_fused: Tensor | None = None
    """[B, E], both modalities after fusion"""
    cml_unimodal: Tensor | None = None
    """[B, E], both modalities before fusion"""
    cml_fused_globals: Tensor | None = None
    """[B, 2 E], what ``cml_fused`` is a head of: text half, image half"""
    cml_unimodal_globals: Tensor | None = None
    """[B, 2 E], the same of ``cml_unimodal``"""
    dfa_image: Tensor | None = None
    """[B, E]"""
    dfa_text: Tensor | None = None
    """[B, E]"""
    ssm_visual: Tensor | None = None
    """[B, S, 128], sentence-informed visual features"""
    ssm_text: Tensor | None = None
    """[B, S, E], sentence targets, no gradient"""
    itc_image: Tensor | None = None
    """[B, E]"""
    itc_text: Tensor | None = None
    """[B, E]"""


class MG3D(nn.Module):
    """The joint model. It has exactly the parameters that the terms with a weight train.

    A forward pass encodes each volume at most twice (whole, masked) and each report at most once
    (masked), or twice if its sentence means are not given. Without ``mlm_weight`` nothing could
    train the projection of the text, so the sentences then enter as the text encoder gives them.
    """

    #: As published, MIM is fused with words by the layers of MLM, not with sentences by its own.
    mim_by_words = False

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        mlm, sfr, mim = objective.mlm_weight, objective.sfr_weight, objective.mim_weight
        cml, dfa, ssm = objective.cml_weight, objective.dfa_weight, objective.ssm_weight
        itc, num_layers = objective.itc_weight, model.num_fusion_layers

        self.vision_encoder = vision_encoder(model.vision)
        self.text_encoder = FrozenTextEncoder(model.text)
        self.width = width = self.text_encoder.hidden_size
        if width % 16:
            raise ValueError(
                f"text encoder {model.text.name_or_folder!r} has hidden size {width}: heads and "
                "decoder need a multiple of 16, as in 384 or 768"
            )

        channels = self.vision_encoder.channels
        self.token_projector: nn.Module = nn.Identity()
        if model.vision.token_projector:
            self.token_projector = decoders.token_projector(channels, width)
            channels = width
        self.image_projection = nn.Linear(channels, width)
        self.image_type = nn.Parameter(torch.empty(width).normal_(std=0.02))

        text_pool: Pool = "linear" if model.fusion_pool == "linear" else "mean"
        image_pool: Pool = "attention" if model.fusion_pool == "attention" else "mean"
        over_words = FusionKind(model.fusion, "mean", text_pool, model.num_image_tokens)
        over_sentences = FusionKind(model.fusion, image_pool, text_pool, model.num_image_tokens)

        if mlm:
            self.text_projection = nn.Linear(width, width)
            nn.init.normal_(self.text_projection.weight, std=0.02)
            nn.init.zeros_(self.text_projection.bias)
            self.text_type = nn.Parameter(torch.empty(width).normal_(std=0.02))
            read = bool(mim) and self.mim_by_words
            self.mlm_fusion = Fusion(width, num_layers, over_words, image=read, text=True)
            self.mlm_head = decoders.MaskedWordHead(width, self.text_encoder.vocab_size)
        if sfr:
            self.sfr_head = decoders.sfr_prediction_head(width)
            self.sfr_target_head = decoders.sfr_target_head(width)
        if (mim and not self.mim_by_words) or cml or dfa:
            self.mim_fusion = Fusion(width, num_layers, over_sentences, image=True, text=bool(cml))
        if mim:
            self.mim_head = decoders.VolumeDecoder(width, model.mim_decoder_width)
        if cml or dfa or ssm or itc:
            self.image_pool = ImagePool(width)
        if cml or itc:
            self.text_pool = SentencePool(width)
        if cml or dfa:
            self.fused_image_pool = ImagePool(width)
        if cml:
            self.fused_text_pool = SentencePool(width)
            self.cml_fused_head = decoders.contrastive_head(2 * width, width)
            self.cml_unimodal_head = decoders.contrastive_head(2 * width, width)
        if dfa or ssm:
            self.aggregation = Aggregation(width, num_layers, pooled=bool(dfa))
        if dfa:
            self.dfa_image_head = decoders.contrastive_head(width, width)
            self.dfa_text_head = decoders.contrastive_head(width, width)
        if ssm:
            self.ssm_head = decoders.ssm_head(width)
        if itc:
            self.itc_image_head = decoders.contrastive_head(width, width)
            self.itc_text_head = decoders.contrastive_head(width, width)

    @property
    def heads(self) -> list[nn.Module]:
        """Modules behind the last shared feature: those that learn faster (spec/model 5)."""
        return [module for name, module in self.named_children() if name.endswith("_head")]

    @property
    def blocks(self) -> list[nn.Module]:
        """The parts of the image's way, called as wholes and always with the same shapes.

        They hold most of the parameters and of the work, so they are what is sharded and compiled.
        """
        children = self.vision_encoder.children()
        nested = (c if isinstance(c, nn.ModuleList) else [c] for c in children)
        blocks = [
            block for level in nested for block in level if any(True for _ in block.parameters())
        ]
        if self.objective.mim_weight:
            blocks.append(self.mim_head)
        return blocks

    def forward(self, inputs: Inputs) -> Outputs:
        """Everything that the terms with a weight compare."""
        weights = self.objective
        outputs: dict[str, Tensor] = {"sentence_mask": inputs.sentence_mask}
        if (
            weights.sfr_weight or weights.mim_weight or weights.cml_weight or weights.dfa_weight
            or weights.ssm_weight or weights.itc_weight
        ):  # fmt: skip
            means, mask = self._sentences(
                inputs.input_ids, inputs.attention_mask, inputs.sentence_index,
                inputs.sentence_mask, inputs.sentence_means,
            )  # fmt: skip
            outputs["sentence_mask"] = mask
            sentences = self._project_sentences(means)
        if (
            weights.mlm_weight or weights.cml_weight or weights.dfa_weight or weights.ssm_weight
            or weights.itc_weight
        ):  # fmt: skip
            image = self.image_tokens(inputs.volume)

        if weights.mlm_weight:
            transformed = self._masked_words(inputs, image)
            outputs["mlm_logits"] = self.mlm_head(transformed, inputs.mlm_labels)
        if weights.sfr_weight:
            words, _ = sentence_means(transformed, inputs.sentence_index, mask)
            outputs["sfr_prediction"] = self.sfr_head(words)
            outputs["sfr_target"] = self._sfr_targets(inputs, means, mask)

        if weights.mim_weight:
            masked_image = self.image_tokens(inputs.masked_volume)
            guided = self._guided(masked_image, inputs, sentences, mask)
            grid = self.vision_encoder.grid(inputs.masked_volume)
            outputs["reconstruction"] = self.mim_head(guided, grid)

        if weights.cml_weight or weights.dfa_weight or weights.ssm_weight or weights.itc_weight:
            image = self._contrast_tokens(image)
            image_global = self.image_pool(image)
        if weights.cml_weight or weights.itc_weight:
            text_global = self.text_pool(sentences, mask)
        if weights.cml_weight or weights.dfa_weight:
            fused_image, fused_text = self.mim_fusion(image, sentences, mask)
            fused_image_global = self.fused_image_pool(fused_image)
        if weights.cml_weight:
            fused_text_global = self.fused_text_pool(fused_text, mask)
            fused = torch.cat([fused_text_global, fused_image_global], dim=-1)
            unimodal = torch.cat([text_global, image_global], dim=-1)
            outputs["cml_fused_globals"], outputs["cml_unimodal_globals"] = fused, unimodal
            outputs["cml_fused"] = self.cml_fused_head(fused)
            outputs["cml_unimodal"] = self.cml_unimodal_head(unimodal)
        if weights.dfa_weight or weights.ssm_weight:
            aggregated, informed = self.aggregation(sentences, mask, image_global)
        if weights.dfa_weight:
            outputs["dfa_image"] = self.dfa_image_head(fused_image_global)
            outputs["dfa_text"] = self.dfa_text_head(aggregated)
        if weights.ssm_weight:
            outputs["ssm_visual"] = self.ssm_head(informed)
            outputs["ssm_text"] = self._ssm_targets(inputs, means)
        if weights.itc_weight:
            outputs["itc_image"] = self.itc_image_head(image_global)
            outputs["itc_text"] = self.itc_text_head(text_global)
        return Outputs(**outputs)

    def encode_image(self, volume: Tensor) -> Tensor:
        """[B, 1, D, H, W] -> L2-normalised embeddings [B, E] of the dual encoder.

        Raises ValueError if the model has none (``itc_weight`` 0).
        """
        return self.embed_image(self._contrast_tokens(self.image_tokens(volume)))

    def encode_text(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        sentence_index: Tensor,
        sentence_mask: Tensor,
    ) -> Tensor:
        """[B, L] long, [B, L], [B, L] long, [B, S] -> L2-normalised embeddings [B, E].

        Raises ValueError if the model has no dual encoder (``itc_weight`` 0).
        """
        return self.embed_sentences(
            *self.encode_sentences(input_ids, attention_mask, sentence_index, sentence_mask)
        )

    def embed_image(self, image: Tensor) -> Tensor:
        """`encode_image` from the tokens of `encode_pair`: [B, N, E] -> [B, E]."""
        self._require_dual_encoder()
        return F.normalize(self.itc_image_head(self.image_pool(image)), dim=-1, eps=1e-6)

    def embed_sentences(self, sentences: Tensor, mask: Tensor) -> Tensor:
        """`encode_text` from the sentences of `encode_pair`: [B, S, E], [B, S] -> [B, E]."""
        self._require_dual_encoder()
        return F.normalize(self.itc_text_head(self.text_pool(sentences, mask)), dim=-1, eps=1e-6)

    def encode_pair(
        self,
        volume: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        sentence_index: Tensor,
        sentence_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Volumes and reports encoded once, before they meet or are pooled.

        [B, 1, D, H, W], [B, L], [B, L], [B, L], [B, S] -> image tokens [B, N, E], sentences
        [B, S, E], which exist [B, S].
        """
        sentences, exist = self.encode_sentences(
            input_ids, attention_mask, sentence_index, sentence_mask
        )
        return self.encode_tokens(self.vision_encoder.tokens(volume)), sentences, exist

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """The image's side of `encode_pair` from the encoder's tokens: [B, N, 16C] -> [B, N, E]."""
        return self._contrast_tokens(self._project_tokens(tokens))

    def encode_sentences(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        sentence_index: Tensor,
        sentence_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The report's side of `encode_pair`: sentences [B, S, E], which exist [B, S]."""
        means, mask = self._sentences(input_ids, attention_mask, sentence_index, sentence_mask)
        return self._project_sentences(means), mask

    @property
    def matches(self) -> bool:
        """Whether the model has what `match` needs: the layers and heads of DFA."""
        return bool(self.objective.dfa_weight)

    def match(self, image: Tensor, sentences: Tensor, mask: Tensor) -> Tensor:
        """Cosine of DFA's two sides after the modalities met (spec/model 4.6), pair by pair.

        [B, N, E], [B, S, E], [B, S] -> [B]. Unlike the dual encoder's similarity it needs a pass of
        the fusion layers for every pair. Raises ValueError if the model has no DFA.
        """
        if not self.matches:
            raise ValueError(
                "this model has nothing to match a pair with: it was built with "
                "objective.dfa_weight 0; pre-train with dfa_weight > 0"
            )
        fused_image, _ = self.mim_fusion(image, sentences, mask)
        aggregated, _ = self.aggregation(sentences, mask, self.image_pool(image))
        image_side = self.dfa_image_head(self.fused_image_pool(fused_image))
        return F.cosine_similarity(image_side, self.dfa_text_head(aggregated), dim=-1, eps=1e-6)

    @property
    def fuses_sentences(self) -> bool:
        """Whether the model has layers in which image tokens and sentences meet."""
        return hasattr(self, "mim_fusion")

    def sentence_weights(self, image: Tensor, sentences: Tensor, mask: Tensor) -> Tensor:
        """Gate or attention of each sentence over the image tokens in the last fusion layer.

        [B, N, E], [B, S, E], [B, S] -> [B, S, N].
        """
        assert self.fuses_sentences, "a model without fusion layers for sentences"
        weights: Tensor = self.mim_fusion.sentence_weights(image, sentences, mask)
        return weights

    def image_tokens(self, volume: Tensor) -> Tensor:
        """Y = W_v F + b_v + e₁ (spec/model 3), projected once: [B, 1, D, H, W] -> [B, N, E]."""
        return self._project_tokens(self.vision_encoder.tokens(volume))

    def _project_tokens(self, tokens: Tensor) -> Tensor:
        """[B, N, 16C] -> [B, N, E]."""
        return self.image_projection(self.token_projector(tokens)) + self.image_type

    def _sentences(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        sentence_index: Tensor,
        sentence_mask: Tensor,
        cached: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Contextual sentence means of the frozen encoder [B, S, E], and which exist [B, S]."""
        if cached is not None:
            return cached, sentence_mask
        contextual = self.text_encoder(input_ids, attention_mask)
        return sentence_means(contextual, sentence_index, sentence_mask)

    @torch.no_grad()
    def _project_sentences(self, means: Tensor) -> Tensor:
        """t = sg(mean T): the mean commutes with the affine map; only MLM trains W_l and e₀."""
        if not self.objective.mlm_weight:
            return means
        return self.text_projection(means) + self.text_type

    def _masked_words(self, inputs: Inputs, image: Tensor) -> Tensor:
        """Fused and transformed tokens of the masked report, [B, L, E] (spec/model 4.2)."""
        words = self.text_encoder(inputs.masked_ids, inputs.attention_mask)
        words = self.text_projection(words) + self.text_type
        _, fused = self.mlm_fusion(image, words, self._heeded(inputs.attention_mask))
        return self.mlm_head.transform(fused)

    def _heeded(self, attention_mask: Tensor) -> Tensor:
        """Which words an image token's gates are averaged over, [B, L] -> [B, L] bool."""
        return attention_mask.bool()

    def _contrast_tokens(self, image: Tensor) -> Tensor:
        """What CML, DFA, SSM and ITC read of the whole volume (spec/model 4.4), [B, N, E]."""
        return image

    def _guided(self, image: Tensor, inputs: Inputs, sentences: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B, N, E] of the masked volume, guided by the report (spec/model 4.3)."""
        guided, _ = self.mim_fusion(image, sentences, mask)
        return guided

    def _sfr_targets(self, inputs: Inputs, means: Tensor, mask: Tensor) -> Tensor:
        """What a sentence's masked words shall give back (spec/model 4.2), [B, S, 8]."""
        return self.sfr_target_head(means).detach()

    def _ssm_targets(self, inputs: Inputs, means: Tensor) -> Tensor:
        """What decides which sentences are similar, [B, S, E] (spec/model 4.7).

        The reference's thresholds (0.9, 0.6) belong to static embeddings. In context they have no
        positives: MiniLM gives the same sentence in two reports a cosine of 0.75 to 0.82.
        """
        if self.objective.ssm_target == "contextual":
            return means
        static = self.text_encoder.static(inputs.input_ids)
        return sentence_means(static, inputs.sentence_index, inputs.sentence_mask)[0]

    def _require_dual_encoder(self) -> None:
        if not self.objective.itc_weight:
            raise ValueError(
                "this model has no dual encoder: it was built with objective.itc_weight 0; "
                "pre-train with itc_weight > 0"
            )
