"""Splits and shards by hash: nobody moves without a reason. A hand-worked case and properties."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.data.planning import SPLITS, assign_shards, assign_split, assign_splits, hash_keys
from mg3d.params import BuildManifest

PARAMS = BuildManifest(seed=3, validation_fraction=0.2, test_fraction=0.3)
IDS = st.sets(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=60)


def shards(ids: list[str], max_studies: int) -> dict[str, str]:
    splits = assign_splits(pd.Series(ids), PARAMS)
    found = assign_shards(splits, hash_keys(ids), max_studies)
    return dict(zip(ids, found.astype(str), strict=True))


def test_keys_are_the_first_bits_of_the_hash() -> None:
    (key,) = hash_keys(["abc"])
    assert f"{key:016x}" == hashlib.sha256(b"abc").hexdigest()[:16] == "ba7816bf8f01cfea"


def test_shards_by_hand() -> None:
    """Five keys of one split, at most two a shard: 0 | 10 | 110, 111."""
    keys = np.array([0b0001, 0b1011, 0b1000, 0b1101, 0b1110, 0b1111], np.uint64) << np.uint64(60)
    splits = pd.Series(pd.Categorical(["train"] * 6, SPLITS))
    found = assign_shards(splits, keys, 2)
    bits = ["0", "10", "10", "110", "111", "111"]
    assert found.tolist() == [f"train-{name}" for name in bits]
    assert set(assign_shards(splits, keys, 6)) == {"train-all"}
    splits = pd.Series(pd.Categorical(["train", "test"] * 3, SPLITS))
    assert assign_shards(splits, keys, 3).tolist() == ["train-all", "test-all"] * 3


def test_equal_keys_end_in_one_shard() -> None:
    splits = pd.Series(pd.Categorical(["train"] * 3, SPLITS))
    (name,) = set(assign_shards(splits, np.zeros(3, np.uint64), 2))
    assert name == "train-" + "0" * 64


@given(IDS)
def test_splits_of_a_column_are_those_one_by_one(patients: set[str]) -> None:
    column = pd.Series(sorted(patients) * 2)
    expected = [assign_split(patient, PARAMS) for patient in column]
    assert assign_splits(column, PARAMS).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(IDS, IDS, st.integers(1, 9))
def test_additions_move_no_patient_and_halve_full_shards_only(
    before: set[str], more: set[str], max_studies: int
) -> None:
    old = shards(sorted(before), max_studies)
    new = shards(sorted(before | more), max_studies)
    sizes = pd.Series(new).value_counts()
    assert sizes.max() <= max_studies
    joined = pd.Series(old).value_counts()
    for study, name in old.items():
        split, _, bits = name.partition("-")
        new_split, _, new_bits = new[study].partition("-")
        assert new_split == split
        prefix = "" if bits == "all" else bits
        assert bits == new_bits or new_bits.startswith(prefix)
        if new_bits != bits:  # only because the old shard would have overflowed
            in_old = sum(
                other.startswith(f"{split}-{prefix}") or other == name for other in new.values()
            )
            assert in_old > max_studies >= joined[name]


@settings(max_examples=30, deadline=None)
@given(IDS, st.integers(1, 5), st.randoms())
def test_shards_do_not_depend_on_the_order(ids: set[str], max_studies: int, random) -> None:
    shuffled = list(ids)
    random.shuffle(shuffled)
    assert shards(sorted(ids), max_studies) == shards(shuffled, max_studies)


def test_fractions_hold_in_expectation() -> None:
    splits = assign_splits(pd.Series([f"p{i}" for i in range(4000)]), PARAMS)
    shares = splits.value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.3, abs=0.03)  # four standard deviations
    assert shares["validation"] == pytest.approx(0.2, abs=0.026)
