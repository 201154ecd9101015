"""Columns of a million ids: sorted, compared and quoted as bytes, not as a million objects."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

_WIDTH = 64  # bytes of a text; of longer ones the table of letters would be large


def text_bytes(texts: "pa.Array") -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 bytes of a large_string column, uint8, and the N + 1 places where texts begin."""
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data or b"", np.uint8)[starts[0] : starts[-1]]
    return content, starts - starts[0]


def is_plain(texts: "pa.Array") -> bool:
    """Whether JSON writes these texts as they are: printable ASCII, no quote or backslash."""
    if not len(texts):
        return True
    plain = np.zeros(256, bool)
    plain[0x20:0x80] = True
    plain[[ord('"'), ord("\\")]] = False
    return bool(plain[text_bytes(texts)[0]].all())


def text_words(texts: "pa.Array") -> list[np.ndarray]:
    """Numbers (N,) uint64 that compare, the first first, as the texts of a large_string column do.

    Eight bytes make a number; those that all texts share are left out; the length comes last.
    """
    content, starts = text_bytes(texts)
    lengths = np.diff(starts)
    width = int(lengths.max())
    if (lengths == width).all():
        letters = content.reshape(len(texts), width)
    else:
        letters = np.zeros((len(texts), width), np.uint8)
        letters[np.arange(width) < lengths[:, None]] = content
    letters = letters[:, (letters != letters[0]).any(axis=0)]
    padded = np.zeros((len(texts), -(-max(1, letters.shape[1]) // 8) * 8), np.uint8)
    padded[:, : letters.shape[1]] = letters
    return [*padded.view(">u8").astype(np.uint64).T, lengths.astype(np.uint64)]


def order_of(texts: "pa.Array") -> np.ndarray:
    """Places of a large_string column's texts in the order of their code points, like ``sorted``.

    Several times faster than sorting strings: eight bytes are compared as one number, after those
    that all texts share, and only texts that still tie are looked at again.
    """
    import pyarrow.compute as pc

    if not len(texts):
        return np.zeros(0, np.int64)
    if np.diff(text_bytes(texts)[1]).max() > _WIDTH:
        return pc.sort_indices(texts).to_numpy().astype(np.int64)
    words = text_words(texts)  # the length makes "a" smaller than "a\0"
    order = np.argsort(words[0], kind="stable")
    first = words[0][order]
    same = np.r_[False, first[1:] == first[:-1], False]
    tied = np.flatnonzero(same[1:] | same[:-1])
    members = order[tied]
    order[tied] = members[np.lexsort([word[members] for word in reversed(words)])]
    return order


def are_distinct(texts: "pa.Array") -> bool:
    """Whether no text of a large_string column is there twice."""
    import pyarrow.compute as pc

    if len(texts) and np.diff(text_bytes(texts)[1]).max() <= _WIDTH:
        keys = np.zeros(len(texts), np.uint64)
        for word in text_words(texts):
            keys = (keys ^ (keys >> np.uint64(29)) ^ word) * np.uint64(0x9E3779B97F4A7C15)
        keys.sort()
        if (keys[1:] != keys[:-1]).all():  # otherwise two texts may differ all the same
            return True
    return bool(pc.count_distinct(texts).as_py() == len(texts))
