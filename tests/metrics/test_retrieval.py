import itertools

import numpy as np
import pytest
import torch

from mg3d.metrics.retrieval import (
    average_precision_at,
    chance_recall_at,
    first_items,
    label_overlap,
    label_overlap_at,
    mean_rank_percentile,
    mean_reciprocal_rank,
    median_rank,
    ranks,
    recall_at,
    reranked,
)

SIMILARITY = np.array([[0.9, 0.1, 0.5], [0.8, 0.8, 0.1], [0.3, 0.7, 0.2]])
OWN = np.eye(3, dtype=bool)


def test_ranks_by_hand_a_tie_counts_against_us() -> None:
    rank = ranks(SIMILARITY, OWN)
    assert rank.tolist() == [1, 2, 3]
    assert recall_at(rank, 1) == pytest.approx(1 / 3)
    assert recall_at(rank, 2) == pytest.approx(2 / 3)
    assert median_rank(rank) == 2
    assert mean_reciprocal_rank(rank) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert mean_rank_percentile(rank, 3) == pytest.approx((1 + 0.5 + 0) / 3)


def test_collapsed_encoder_is_last_not_first() -> None:
    assert ranks(np.ones((4, 4)), np.eye(4, dtype=bool)).tolist() == [4, 4, 4, 4]


def test_siblings_all_count_and_do_not_push_each_other_down() -> None:
    similarity = np.array([[0.9, 0.8, 0.95, 0.1]])
    relevant = np.array([[True, True, False, False]])
    assert ranks(similarity, relevant).tolist() == [2]
    assert ranks(np.ones((1, 4)), relevant).tolist() == [3]


def test_query_without_relevant_item() -> None:
    with pytest.raises(ValueError, match="1 queries have no relevant item"):
        ranks(np.ones((1, 2)), np.zeros((1, 2), dtype=bool))


def test_agree_with_torchmetrics() -> None:
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_reciprocal_rank

    generator = np.random.default_rng(0)
    similarity = generator.random((20, 30))  # torchmetrics takes none below 0 for found
    relevant = generator.random((20, 30)) < 0.1
    relevant[:, 0] |= ~relevant.any(axis=1)
    rank = ranks(similarity, relevant)
    rows = list(zip(torch.from_numpy(similarity), torch.from_numpy(relevant), strict=True))
    for k in (1, 5, 10):
        theirs = np.mean([float(retrieval_hit_rate(s, r, top_k=k)) for s, r in rows])
        assert recall_at(rank, k) == pytest.approx(theirs)
    theirs = np.mean([float(retrieval_reciprocal_rank(s, r)) for s, r in rows])
    assert mean_reciprocal_rank(rank) == pytest.approx(theirs)


def test_chance_by_enumeration() -> None:
    orders = list(itertools.permutations(range(5)))
    hits = [bool({0, 1} & set(order[:2])) for order in orders]
    assert chance_recall_at(2, np.array([2]), 5) == pytest.approx(np.mean(hits))
    assert chance_recall_at(3, np.ones(7), 12) == pytest.approx(3 / 12)
    assert chance_recall_at(9, np.ones(7), 4) == 1


def test_label_overlap_by_hand() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    overlap = label_overlap(labels)
    assert overlap[0].tolist() == [1, 0.5, 0, 0]
    assert overlap[2, 3] == 1


def test_label_overlap_leaves_out_the_own_patient_and_breaks_ties_downwards() -> None:
    overlap = np.array([[1, 1, 0.5, 0.2]])
    allowed = np.array([[False, False, True, True]])
    similarity = np.array([[1.0, 0.9, 0.4, 0.4]])
    assert label_overlap_at(similarity, overlap, allowed, 1).tolist() == [0.2]
    assert label_overlap_at(similarity, overlap, allowed, 2) == pytest.approx([0.35])
    assert np.isnan(label_overlap_at(similarity, overlap, allowed, 3)).all()


def test_average_precision_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.retrieval import retrieval_average_precision

    generator = np.random.default_rng(0)
    similarity = generator.random((12, 20))
    relevant = generator.random((12, 20)) < 0.2
    allowed = np.ones((12, 20), dtype=bool)
    allowed[np.arange(12), np.arange(12)] = False
    ours = average_precision_at(similarity, relevant, allowed, 5)
    for row in range(12):
        s, r = (torch.from_numpy(rows[row][allowed[row]]) for rows in (similarity, relevant))
        assert ours[row] == pytest.approx(float(retrieval_average_precision(s, r, top_k=5)))


def test_average_precision_by_hand() -> None:
    similarity = np.array([[0.9, 0.8, 0.7, 0.6]])
    relevant = np.array([[True, False, True, True]])
    everyone = np.ones((1, 4), dtype=bool)
    assert average_precision_at(similarity, relevant, everyone, 3) == pytest.approx(
        [(1 + 2 / 3) / 2]
    )
    # All alike: the irrelevant one comes first.
    assert average_precision_at(np.ones((1, 4)), relevant, everyone, 2) == pytest.approx([1 / 2])
    assert np.isnan(average_precision_at(similarity, ~everyone, everyone, 3)).all()
    assert np.isnan(average_precision_at(similarity, relevant, everyone, 5)).all()


def test_the_first_items_are_pessimistic_too() -> None:
    relevant = np.array([[True, False, False]])
    assert first_items(np.ones((1, 3)), relevant, 2).tolist() == [[False, True, True]]
    assert first_items(np.array([[0.9, 0.8, 0.1]]), relevant, 2).tolist() == [[True, True, False]]
    assert first_items(np.ones((1, 3)), relevant, 9).all()


def test_reranking_orders_the_first_by_the_pair_and_leaves_the_rest_behind() -> None:
    similarity = np.array([[0.9, 0.8, 0.7, 0.6]])
    first = np.array([[True, True, False, False]])
    pair = np.array([[-0.9, -0.5, np.nan, 5.0]])
    order = np.argsort(-reranked(similarity, pair, first)[0])
    assert order.tolist() == [1, 0, 2, 3]
