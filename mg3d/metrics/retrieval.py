"""Ranks of the right item in a gallery, and what is read off them.

Ties are resolved pessimistically: an irrelevant item with the same similarity stands before the
right one. So a collapsed encoder, which gives everything the same similarity, scores zero instead
of perfect, and two patients with word-for-word the same report do not count as found.
"""

import numpy as np


def ranks(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """1-based rank of each query's best relevant item.

    ``similarity`` [Q, G] (higher is nearer), ``relevant`` [Q, G] bool; returns int [Q]. With
    several relevant items (the reconstructions of one scan) the best one counts, and the others do
    not push it down. Raises ValueError for a query without a relevant item.
    """
    if similarity.shape != relevant.shape:
        raise ValueError(f"similarity {similarity.shape} and relevant {relevant.shape} differ")
    without = np.flatnonzero(~relevant.any(axis=1))
    if len(without):
        raise ValueError(f"{len(without)} queries have no relevant item in the gallery")
    best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((similarity >= best) & ~relevant).sum(axis=1)


def recall_at(rank: np.ndarray, k: int) -> float:
    """Share of queries with a relevant item among the first k (the any-hit form)."""
    return float((rank <= k).mean())


def chance_recall_at(k: int, num_relevant: np.ndarray, gallery: int) -> float:
    """Expected `recall_at` of a random ranking: 1 - C(G-r, k)/C(G, k), mean over queries.

    ``num_relevant`` [Q]; with one relevant item each this is k/G.
    """
    k = min(k, gallery)
    miss = np.ones(len(num_relevant))
    for drawn in range(k):
        miss *= np.maximum(gallery - num_relevant - drawn, 0) / (gallery - drawn)
    return float(1 - miss.mean())


def median_rank(rank: np.ndarray) -> float:
    """Median of the ranks; chance is (gallery + 1) / 2."""
    return float(np.median(rank))


def mean_reciprocal_rank(rank: np.ndarray) -> float:
    """Mean of 1/rank."""
    return float((1 / rank).mean())


def mean_rank_percentile(rank: np.ndarray, gallery: int) -> float:
    """Mean share of the rest of the gallery behind the right item: 1 best, 0.5 chance."""
    return float((1 - (rank - 1) / (gallery - 1)).mean()) if gallery > 1 else float("nan")


def label_overlap(labels: np.ndarray) -> np.ndarray:
    """Intersection over union of the label sets of each pair: [N, L] in {0, 1} -> [N, N].

    Two empty sets are the same set: 1.
    """
    labels = labels.astype(bool).astype(float)
    intersection = labels @ labels.T
    size = labels.sum(axis=1)
    union = size[:, None] + size[None, :] - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def label_overlap_at(
    similarity: np.ndarray, overlap: np.ndarray, allowed: np.ndarray, k: int
) -> np.ndarray:
    """Mean label overlap of each query's k nearest allowed items; NaN with fewer than k.

    All [Q, G]; ``allowed`` is False for the query's own patient (siblings and itself, which would
    always come first). Equal similarities: the lower overlap comes first, pessimistically.
    """
    result = np.full(len(similarity), np.nan)
    for query in range(len(similarity)):
        items = np.flatnonzero(allowed[query])
        if len(items) >= k:
            order = np.lexsort((overlap[query, items], -similarity[query, items]))
            result[query] = overlap[query, items[order[:k]]].mean()
    return result


def average_precision_at(
    similarity: np.ndarray, relevant: np.ndarray, allowed: np.ndarray, k: int
) -> np.ndarray:
    """Average precision of each query's k nearest allowed items (its mean is MAP@K).

    All [Q, G]; returns [Q]: mean precision at the relevant ones among them, 0 if none is (as
    torchmetrics has it). NaN for a query without a relevant item, or with fewer than k allowed
    ones. Equal similarities: the irrelevant one comes first, pessimistically.
    """
    result = np.full(len(similarity), np.nan)
    for query in range(len(similarity)):
        items = np.flatnonzero(allowed[query])
        if len(items) >= k and relevant[query, items].any():
            order = np.lexsort((relevant[query, items], -similarity[query, items]))
            hits = relevant[query, items[order[:k]]]
            precision = np.cumsum(hits) / np.arange(1, k + 1)
            result[query] = precision[hits].mean() if hits.any() else 0.0
    return result


def first_items(similarity: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Which k items come first for each query: [Q, G] -> bool [Q, G].

    Equal similarities: the irrelevant one comes first, pessimistically.
    """
    order = np.lexsort((relevant, -similarity), axis=1)[:, :k]
    first = np.zeros(similarity.shape, dtype=bool)
    np.put_along_axis(first, order, True, axis=1)
    return first


def reranked(similarity: np.ndarray, pair: np.ndarray, first: np.ndarray) -> np.ndarray:
    """A similarity by which the ``first`` items stand before all others, ordered by ``pair``.

    All [Q, G]; ``pair`` is read where ``first`` only, the others keep their order.
    """
    lift = similarity.max() - pair[first].min() + 1
    return np.where(first, pair + lift, similarity)
