"""What writes a report: a small causal decoder that reads visual tokens, and its tokenizer.

GPT-2's architecture with cross-attention (transformers), trained from scratch. Tokens are
byte-level BPE trained on the training reports, so no word is unknown.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg3d.metrics.findings import FINDINGS
from mg3d.params import CtrgReport

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


class Reporter(nn.Module):
    """Volume or its tokens, and findings -> a report. Without ``encoder``: tokens [B, N, C].

    Tokens are standardised by the training set [M, N, C], place by place: what all chests share
    would drown what differs. Findings [B, K] in {0, 1} are further tokens, one each for yes or no.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        train_tokens: Tensor,
        vocabulary_size: int,
        params: CtrgReport,
        encoder: Any,
    ) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", train_tokens.mean(0))
        self.register_buffer("deviation", train_tokens.std(0, correction=0).clamp_min(1e-6))
        num_tokens, channels = train_tokens.shape[1:]
        self.project = nn.Linear(channels, params.width)
        self.place = nn.Parameter(torch.zeros(num_tokens, params.width))
        self.prompt = nn.Parameter(0.5 * torch.randn(2, len(FINDINGS), params.width))
        self.decoder: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary_size,
                n_positions=params.max_new_tokens + 2,
                n_embd=params.width,
                n_layer=params.num_layers,
                n_head=params.num_heads,
                add_cross_attention=True,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        )

    def take_language(self, other: "Reporter") -> None:
        """Start from the decoder and the prompt of ``other``."""
        self.decoder.load_state_dict(other.decoder.state_dict())
        self.prompt.data.copy_(other.prompt)

    def memory(self, inputs: Tensor, findings: Tensor) -> Tensor:
        """What the decoder attends to: [B, N, C] or [B, 1, D, H, W], and [B, K] ->
        [B, N + K, width]."""
        inputs, findings = inputs.to(self.place.device), findings.to(self.place.device)
        tokens = inputs if self.encoder is None else self.encoder.tokens(inputs)
        seen = self.project((tokens - self.mean) / self.deviation) + self.place
        told = torch.where(findings[..., None].bool(), self.prompt[1], self.prompt[0])
        return torch.cat([seen, told], dim=1)

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """(inputs, findings [B, K], ids [B, L] with 0 = padding) -> next-token cross-entropy."""
        inputs, findings, ids = batch
        logits = self.decoder(
            input_ids=ids,
            attention_mask=(ids != 0).long(),
            encoder_hidden_states=self.memory(inputs, findings),
            use_cache=False,
        ).logits
        return {
            "total": F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], ignore_index=0)
        }

    @torch.no_grad()
    def generate(self, batch: tuple[Tensor, Tensor], num_beams: int, max_new_tokens: int) -> Tensor:
        """(inputs, findings) -> ids [B * num_beams, L] by beam search from <bos>: the drafts of
        each case one after another, the likeliest first."""
        memory = self.memory(*batch)
        start = torch.ones(len(memory), 1, dtype=torch.long, device=memory.device)
        return self.decoder.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=memory,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )


def train_tokenizer(texts: Sequence[str], vocabulary_size: int) -> "Tokenizer":
    """Byte-level BPE over ``texts``: every string can be written, none is unknown.

    Ids 0, 1, 2 are <pad>, <bos>, <eos>; 256 bytes follow, then merges by frequency.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def encode(tokenizer: "Tokenizer", texts: Sequence[str], max_tokens: int) -> Tensor:
    """<bos> text <eos>, padded with 0: long [B, L]. Longer texts lose their end, never <eos>."""
    rows = [[1, *tokenizer.encode(text).ids[: max_tokens - 1], 2] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])
