"""Where the modalities meet (spec/model 3, 4.1, 4.4, 4.6): gates, pools and sentences.

Shapes: B batch, S sentences, L text tokens, N image tokens, E width. Masks are bool, True = valid.
Everything is batched; padding never reaches a valid position.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Heads of the sentence pool (spec/model 3).
NUM_POOL_HEADS = 8


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over axis 1: [B, S, ...], [B, S] -> [B, ...]. Zero where nothing is valid."""
    if mask is None:
        return values.mean(dim=1)
    weights = mask.to(values.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bs,bs...->b...", weights, values)


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


class GatedAttention(nn.Module):
    """One side of own-value gated attention (spec/model 4.1), mean pool, in closed form.

    ``x'_i = mean_j σ(⟨W_q x_i, W_k y_j⟩ / √E) · W_v x_i``: a token keeps its own value, the other
    modality only scales it. Since the value does not depend on j, the mean of the gate is all that
    is needed: no [n, m, E] tensor.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, own: Tensor, other: Tensor, other_mask: Tensor | None = None) -> Tensor:
        """[B, n, E], [B, m, E], [B, m] or None (all valid) -> [B, n, E].

        Zero if the other side has no valid token.
        """
        scores = self.query(own) @ self.key(other).transpose(1, 2)
        gate = torch.sigmoid(scores / own.shape[-1] ** 0.5)  # [B, n, m]
        return masked_mean(gate.transpose(1, 2), other_mask)[..., None] * self.value(own)


class FusionLayer(nn.Module):
    """Both sides of one gated layer; a side that nothing reads is not built."""

    def __init__(self, width: int, *, image: bool = True, text: bool = True) -> None:
        super().__init__()
        self.image = GatedAttention(width) if image else None
        self.text = GatedAttention(width) if text else None

    def forward(
        self, image: Tensor, text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Both sides are gated by the layer's inputs."""
        return (
            self.image(image, text, text_mask) if self.image is not None else None,
            self.text(text, image) if self.text is not None else None,
        )


class Fusion(nn.Module):
    """Stacked gated layers with separate weights (spec/model 4.1).

    ``image`` and ``text`` say which outputs of the last layer are read.
    """

    def __init__(self, width: int, num_layers: int, *, image: bool, text: bool) -> None:
        super().__init__()
        assert image or text, "a fusion that nothing reads"
        inner = [FusionLayer(width) for _ in range(num_layers - 1)]
        self.layers = nn.ModuleList([*inner, FusionLayer(width, image=image, text=text)])

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
            _split_heads(self.query(mean)),
            _split_heads(self.key(keys)),
            _split_heads(self.value(keys)),
            attn_mask=valid[:, None, None, :],
        )
        return self.out(pooled.transpose(1, 2).flatten(2).squeeze(1))


def _split_heads(x: Tensor) -> Tensor:
    """[B, S, E] -> [B, heads, S, E / heads]."""
    return x.unflatten(-1, (NUM_POOL_HEADS, -1)).transpose(1, 2)


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
