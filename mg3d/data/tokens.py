"""A report as tokens that know their sentence and word.

A report is tokenised once, as its sentences joined by one space; tokens find their sentence and
word by character offsets, so nothing drifts (spec/model 1.2). The tokenizer is passed in.

A report of more tokens than the model takes is cut at the last whole sentence that fits: a sentence
is all there or not at all, and the mean of half a sentence is not the mean of the sentence. Only a
first sentence that does not fit by itself is cut within.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """A tokenised report; the three lists are of equal length, at most ``max_tokens``."""

    input_ids: list[int]
    sentence_index: list[int]  # -1 for specials, else 0-based sentence
    word_index: list[int]  # -1 for specials, else 0-based whole word
    num_truncated: int  # tokens left out, of whole sentences but for a too long first one


def tokenize_report(sentences: Sequence[str], tokenizer: Any, max_tokens: int) -> Tokens:
    """Tokenise sentences as one text: [CLS] words [SEP]; the cut is before a sentence, [SEP] stays.

    ``tokenizer`` is a fast BERT-like tokenizer (offsets and word ids).
    """
    encoded = tokenizer(
        " ".join(sentences),
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=False,
        padding=False,
        verbose=False,
    )
    starts = np.cumsum([0, *(len(sentence) + 1 for sentence in sentences)])[:-1].tolist()
    kept = max_tokens - 2
    sentence_index = [bisect_right(starts, start) - 1 for start, _ in encoded["offset_mapping"]]
    num_tokens = len(encoded["input_ids"])
    if num_tokens > kept:  # back to where the sentence that does not fit begins
        kept = sentence_index.index(sentence_index[kept]) or kept
    return Tokens(
        [tokenizer.cls_token_id, *encoded["input_ids"][:kept], tokenizer.sep_token_id],
        [-1, *sentence_index[:kept], -1],
        [-1, *encoded.word_ids()[:kept], -1],
        max(0, num_tokens - kept),
    )
