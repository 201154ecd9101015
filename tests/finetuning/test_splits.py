"""Who is where: by patient, exact shares, official folds kept, dealt ones balanced."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.finetuning.cases import Case, Split
from mg3d.finetuning.splits import deal, nnunet_folds, split_cases, split_sha256

FRACTIONS = {"validation_fraction": 0.1, "test_fraction": 0.2}


def case(number: int, patient: int | None = None, **fields: str | None) -> Case:
    patient = number if patient is None else patient
    return Case(f"case-{number:03d}", f"patient-{patient:03d}", Path("x"), **fields)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=10, max_size=80), st.integers(0, 5))
def test_every_case_once_and_no_patient_twice(patients: list[int], seed: int) -> None:
    cases = [case(number, patient) for number, patient in enumerate(patients)]
    split = split_cases(cases, seed=seed, **FRACTIONS)
    assert sorted(c.case_id for part in split.values() for c in part) == [c.case_id for c in cases]
    owners = [{c.patient_id for c in part} for part in split.values()]
    assert len(set.union(*owners)) == sum(map(len, owners))
    shuffled = split_cases(cases[::-1], seed=seed, **FRACTIONS)
    assert split_sha256(shuffled) == split_sha256(split)


def test_shares_are_exact_in_every_stratum() -> None:
    cases = [case(n, stratum="severe" if n % 4 == 0 else "mild") for n in range(80)]
    split = split_cases(cases, seed=0, **FRACTIONS)
    assert {name: len(part) for name, part in split.items()} == {
        "train": 56, "validation": 8, "test": 16,
    }  # fmt: skip
    severe = {name: sum(c.stratum == "severe" for c in part) for name, part in split.items()}
    assert severe == {"train": 14, "validation": 2, "test": 4}


def test_seed_changes_the_split() -> None:
    cases = [case(n) for n in range(40)]
    hashes = {split_sha256(split_cases(cases, seed=seed, **FRACTIONS)) for seed in range(3)}
    assert len(hashes) == 3


def test_official_test_set_is_kept_and_validation_comes_from_train() -> None:
    cases = [case(n, split="test" if n < 10 else "train") for n in range(40)]
    split = split_cases(cases, seed=0, **FRACTIONS)
    assert [c.case_id for c in split["test"]] == [f"case-{n:03d}" for n in range(10)]
    assert len(split["validation"]) == 3
    assert len(split["train"]) == 27


def test_patient_on_both_sides_of_an_official_split() -> None:
    cases = [case(0, 7, split="train"), case(1, 7, split="test")]
    with pytest.raises(ValueError, match="patient-007 is in train and in test"):
        split_cases(cases, seed=0, **FRACTIONS)


def parts(split: Split) -> dict[str, list[str]]:
    return {name: [case.case_id for case in cases] for name, cases in split.items()}


def test_folds_test_every_patient_once_and_validation_is_drawn() -> None:
    """No official test set: fold k is test (COVID-19-20, MSD)."""
    cases = [case(n, n // 2, fold=n // 8, split="test" if n < 8 else "train") for n in range(40)]  # type: ignore[arg-type]
    splits = [split_cases(cases, seed=0, **FRACTIONS, fold=fold) for fold in range(5)]
    tested = [case_id for split in splits for case_id in parts(split)["test"]]
    assert sorted(tested) == sorted(c.case_id for c in cases)
    assert [len(split["validation"]) for split in splits] == [4] * 5  # a tenth of 16 patients
    assert parts(split_cases(cases, seed=0, **FRACTIONS))["test"] == parts(splits[0])["test"]


def test_a_whole_fold_validates_where_the_data_set_does_so() -> None:
    """LUNA16: subset k is test, the one before validates, eight train."""
    named = {7: "validation", 8: "test", 9: "test"}
    cases = [case(n, fold=n % 10, split=named.get(n % 10, "train")) for n in range(30)]  # type: ignore[arg-type]
    for fold in (0, 4):
        found = parts(split_cases(cases, seed=0, **FRACTIONS, fold=fold))
        assert found["test"] == [f"case-{n:03d}" for n in (fold, fold + 10, fold + 20)]
        before = (fold - 1) % 10
        assert found["validation"] == [f"case-{n:03d}" for n in (before, before + 10, before + 20)]
        assert len(found["train"]) == 24


def test_an_official_test_set_stays_and_fold_k_validates() -> None:
    """ACDC; and with folds that are dealt where the data set has none."""
    cases = [case(n, split="test" if n < 10 else None, stratum="ab"[n % 2]) for n in range(60)]
    splits = [split_cases(cases, seed=0, **FRACTIONS, fold=fold) for fold in range(5)]
    assert all(parts(split)["test"] == [f"case-{n:03d}" for n in range(10)] for split in splits)
    validates = [case_id for split in splits for case_id in parts(split)["validation"]]
    assert sorted(validates) == [f"case-{n:03d}" for n in range(10, 60)]
    for split in splits:
        assert Counter(c.stratum for c in split["validation"]) == {"a": 5, "b": 5}
    given_folds = [replace(c, fold=None if n < 10 else n % 5) for n, c in enumerate(cases)]
    found = parts(split_cases(given_folds, seed=0, **FRACTIONS, fold=3))
    assert found["validation"] == [f"case-{n:03d}" for n in range(13, 60, 5)]


def test_dealt_folds_keep_patients_together_and_know_no_other() -> None:
    cases = [case(n, n // 3) for n in range(30)]
    with pytest.raises(ValueError, match=r"there is no fold 5: take one of \[0, 1, 2, 3, 4\]"):
        split_cases(cases, seed=0, **FRACTIONS, fold=5)
    split = split_cases(cases, seed=0, **FRACTIONS, fold=4)
    owners = [{c.patient_id for c in part} for part in split.values()]
    assert len(set.union(*owners)) == sum(map(len, owners)) == 10
    assert len(owners[2]) == 2


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.sampled_from("abc"), min_size=1))
def test_dealt_folds_are_of_one_size_in_every_stratum(strata: dict[str, str]) -> None:
    folds = deal(strata, 0)
    for of in ("abc", "a", "b", "c"):
        sizes = Counter(folds[patient] for patient, stratum in strata.items() if stratum in of)
        counted = [sizes[fold] for fold in range(5)]
        assert max(counted) - min(counted) <= 1


def test_nnunets_list_numbers_the_folds_of_a_cross_validation_only(tmp_path: Path) -> None:
    assert nnunet_folds(tmp_path) is None
    file = tmp_path / "splits_final.json"
    crossed = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a"], "val": ["b", "c"]}]
    file.write_text(json.dumps(crossed))
    assert nnunet_folds(tmp_path) == {"a": ("val", 0), "b": ("train", 1), "c": ("train", 1)}
    file.write_text(json.dumps(crossed[:1]))
    assert nnunet_folds(tmp_path) == {
        "a": ("val", None),
        "b": ("train", None),
        "c": ("train", None),
    }
    crossed[1]["train"] = ["a", "b"]
    file.write_text(json.dumps(crossed))
    with pytest.raises(ValueError, match="b is in train and in val of fold 1"):
        nnunet_folds(tmp_path)
