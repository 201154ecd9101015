"""Where the modalities meet (spec/model 3, 4.1, 4.4, 4.6): gates, pools and sentences.

Shapes: B batch, S sentences, L text tokens, N image tokens, E width. Masks are bool, True = valid.
Everything is batched; padding never reaches a valid position.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pool = Literal["mean", "linear", "attention"]

#: Heads of the sentence pool (spec/model 3).
NUM_POOL_HEADS = 8


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over axis 1: [B, S, ...], [B, S] -> [B, ...]. Zero where nothing is valid."""
    if mask is None:
        return values.mean(dim=1)
    weights = mask.to(values.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bs,bs...->b...", weights, values)


class SentencePool(nn.Module):
    """Sentences -> one vector by attention of their mean (spec/model 3, CLIP-style)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, sentences: Tensor, mask: Tensor) -> Tensor:
        """[B, S, E], [B, S] -> [B, E]. The mean is the query and, always valid, a key as well."""
        mean = masked_mean(sentences, mask)[:, None]
        keys = torch.cat([mean, sentences], dim=1)
        valid = F.pad(mask, (1, 0), value=True)
        pooled = F.scaled_dot_product_attention(
            _heads(self.query(mean)).transpose(1, 2),
            _heads(self.key(keys)).transpose(1, 2),
            _heads(self.value(keys)).transpose(1, 2),
            attn_mask=valid[:, None, None, :],
        )
        return self.out(pooled.transpose(1, 2).flatten(2).squeeze(1))


def _heads(x: Tensor) -> Tensor:
    """[..., E] -> [..., heads, E / heads]."""
    return x.unflatten(-1, (NUM_POOL_HEADS, -1))


class GatedAttention(nn.Module):
    """One side of own-value gated attention (spec/model 4.1), in closed form.

    ``x'_i = pool_j( g_ij · W_v x_i )`` with ``g_ij = σ(⟨W_q x_i, W_k y_j⟩ / √E)``: a token keeps
    its own value, the other modality only scales it. Since the value does not depend on j, every
    pool reduces to scalars per token, and no [n, m, E] tensor is made:

    - ``mean``: ``(mean_j g_ij) · v_i`` over the valid j;
    - ``linear``: ``(Σ_j w_j g_ij) · v_i + c``, for a fixed number ``num_other`` of tokens j;
    - ``attention``: `SentencePool` over the rows ``g_ij v_i``, whose keys and values are all
      multiples of one projected ``v_i``.
    """

    def __init__(self, width: int, pool: Pool = "mean", num_other: int | None = None) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.pool: nn.Module | None = None
        if pool == "linear":
            assert num_other is not None, "a linear pool needs its number of tokens"
            self.pool = nn.Linear(num_other, 1)
        elif pool == "attention":
            self.pool = SentencePool(width)

    def forward(self, own: Tensor, other: Tensor, other_mask: Tensor | None = None) -> Tensor:
        """[B, n, E], [B, m, E], [B, m] or None (all valid) -> [B, n, E].

        With the mean pool, zero if the other side has no valid token.
        """
        gate = self.weights(own, other)
        value = self.value(own)
        if isinstance(self.pool, SentencePool):
            return self._attention_pooled(self.pool, gate, value, other_mask)
        if isinstance(self.pool, nn.Linear):
            if other_mask is not None:
                gate = gate * other_mask[:, None]
            return gate @ self.pool.weight.T * value + self.pool.bias
        return masked_mean(gate.transpose(1, 2), other_mask)[..., None] * value

    def weights(self, own: Tensor, other: Tensor) -> Tensor:
        """Gates g_ij in (0, 1) before any pool: [B, n, E], [B, m, E] -> [B, n, m]."""
        scores = self.query(own) @ self.key(other).transpose(1, 2)
        return torch.sigmoid(scores / own.shape[-1] ** 0.5)

    @staticmethod
    def _attention_pooled(
        pool: "SentencePool", gate: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """`SentencePool` of the rows g_ij v_i for every i: O(n (E² + m heads)) (spec/model 4.1)."""
        mean = masked_mean(gate.transpose(1, 2), mask)
        scale = torch.cat([mean[..., None], gate], dim=-1)[:, :, None]  # a: [B, n, 1, 1 + m]
        query = scale[..., :1] * _heads(F.linear(value, pool.query.weight))
        query = query + _heads(pool.query.bias)
        key = _heads(F.linear(value, pool.key.weight))
        logits = (query * key).sum(-1, keepdim=True) * scale
        logits = logits + (query * _heads(pool.key.bias)).sum(-1, keepdim=True)
        logits = logits / key.shape[-1] ** 0.5
        if mask is not None:
            valid = F.pad(mask, (1, 0), value=True)
            logits = logits.masked_fill(~valid[:, None, None], -torch.inf)
        weight = (logits.softmax(dim=-1) * scale).sum(-1, keepdim=True)  # [B, n, heads, 1]
        pooled = weight * _heads(F.linear(value, pool.value.weight)) + _heads(pool.value.bias)
        return pool.out(pooled.flatten(-2))


class CrossAttention(nn.Module):
    """The ordinary alternative to the gate: pre-norm multi-head cross-attention and an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # the zero key keeps a report without sentences finite
        self.attention = nn.MultiheadAttention(
            width, NUM_POOL_HEADS, add_zero_attn=True, batch_first=True
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, own: Tensor, other: Tensor, other_mask: Tensor | None = None) -> Tensor:
        """[B, n, E], [B, m, E], [B, m] or None (all valid) -> [B, n, E]."""
        ignored = None if other_mask is None else ~other_mask
        attended, _ = self.attention(
            self.norm(own), other, other, key_padding_mask=ignored, need_weights=False
        )
        own = own + attended
        return own + self.mlp(own)

    def weights(self, own: Tensor, other: Tensor) -> Tensor:
        """Attention, mean over heads: [B, n, E], [B, m, E] -> [B, n, m]. Rows sum to 1 minus what
        the zero key takes."""
        _, weights = self.attention(self.norm(own), other, other, need_weights=True)
        return weights[..., : other.shape[1]]


class GatedResidual(GatedAttention):
    """`GatedAttention` added to the token that it scales."""

    def forward(self, own: Tensor, other: Tensor, other_mask: Tensor | None = None) -> Tensor:
        """[B, n, E], [B, m, E], [B, m] or None (all valid) -> [B, n, E]."""
        return own + super().forward(own, other, other_mask)


@dataclass(frozen=True)
class FusionKind:
    """How two modalities meet: the kind of layer, and how each side pools over the other."""

    layer: Literal["gated", "gated_residual", "cross_attention"] = "gated"
    image_pool: Pool = "mean"
    text_pool: Pool = "mean"
    num_image_tokens: int | None = None  # for a linear text_pool

    def side(self, width: int, pool: Pool) -> CrossAttention | GatedAttention:
        """One side of a layer."""
        if self.layer == "cross_attention":
            return CrossAttention(width)
        gated = GatedResidual if self.layer == "gated_residual" else GatedAttention
        return gated(width, pool, self.num_image_tokens)


class FusionLayer(nn.Module):
    """Both sides of one layer; a side that nothing reads is not built."""

    def __init__(self, width: int, kind: FusionKind, *, image: bool, text: bool) -> None:
        super().__init__()
        self.image = kind.side(width, kind.image_pool) if image else None
        self.text = kind.side(width, kind.text_pool) if text else None

    def forward(
        self, image: Tensor, text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Both sides read the layer's inputs."""
        return (
            self.image(image, text, text_mask) if self.image is not None else None,
            self.text(text, image) if self.text is not None else None,
        )

    def sentence_weights(self, image: Tensor, text: Tensor) -> Tensor:
        """How much each sentence and each image token have to do with each other here, [B, S, N].

        By the side whose tokens are the sentences; by the other one, transposed, if nothing reads
        that. Between a sentence and padding it means nothing.
        """
        if self.text is not None:
            return self.text.weights(text, image)
        assert self.image is not None
        return self.image.weights(image, text).transpose(1, 2)


class Fusion(nn.Module):
    """Stacked layers with separate weights (spec/model 4.1).

    ``image`` and ``text`` say which outputs of the last layer are read.
    """

    def __init__(
        self, width: int, num_layers: int, kind: FusionKind, *, image: bool, text: bool
    ) -> None:
        super().__init__()
        assert image or text, "a fusion that nothing reads"
        inner = [FusionLayer(width, kind, image=True, text=True) for _ in range(num_layers - 1)]
        self.layers = nn.ModuleList([*inner, FusionLayer(width, kind, image=image, text=text)])

    def forward(
        self, image: Tensor, text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """[B, N, E], [B, S or L, E], [B, S or L] -> image [B, N, E], text [B, S or L, E].

        An output that nothing reads is None.
        """
        fused: tuple[Tensor | None, Tensor | None] = (image, text)
        for layer in self.layers:
            fused = layer(*fused, text_mask)
        return fused

    def sentence_weights(self, image: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """`FusionLayer.sentence_weights` of the last layer, given what those before made of both:
        [B, N, E], [B, S, E], [B, S] -> [B, S, N]."""
        for layer in self.layers[:-1]:
            image, text = layer(image, text, text_mask)
        last = self.layers[-1]
        assert isinstance(last, FusionLayer)
        return last.sentence_weights(image, text)


class ImagePool(nn.Module):
    """Image tokens -> one vector: mean, Linear, tanh, for any number of tokens (spec/model 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, E] -> [B, E]."""
        return torch.tanh(self.linear(tokens.mean(dim=1)))


class Aggregation(nn.Module):
    """Sentences gated by the image's global vector (spec/model 4.6).

    ``t_s ← σ(⟨W_q q, W_k t_s⟩ / √E) · W_v t_s`` and ``q ← tanh(W_p mean_s t_s + b_p)``, with q
    starting as the uni-modal image global and W_p shared by the layers. ``pooled`` says whether the
    last q is read.
    """

    def __init__(self, width: int, num_layers: int, *, pooled: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([GatedAttention(width) for _ in range(num_layers)])
        self.pooled = pooled
        self.pool = nn.Linear(width, width) if pooled or num_layers > 1 else None

    def forward(
        self, sentences: Tensor, mask: Tensor, image_global: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """[B, S, E], [B, S], [B, E] -> aggregated global [B, E] or None, sentences [B, S, E].

        The gate is symmetric, so this is `GatedAttention` with one token on the other side; its
        ``query`` is the spec's W_k and its ``key`` the spec's W_q.
        """
        query: Tensor | None = image_global
        for number, layer in enumerate(self.layers, start=1):
            assert query is not None
            sentences = layer(sentences, query[:, None])
            query = None
            if self.pool is not None and (self.pooled or number < len(self.layers)):
                query = torch.tanh(self.pool(masked_mean(sentences, mask)))
        return query, sentences
