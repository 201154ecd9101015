from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.finetuning.task import Case, Scores, data_digest, split_cases, split_sha256, summarise
from mg3d.metrics.bootstrap import Estimate, unavailable

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


def test_data_digest_sees_names_sizes_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "labels.csv"
    file.write_text("1")
    first = data_digest(tmp_path)
    file.touch()
    assert data_digest(tmp_path) == first
    file.write_text("2")
    second = data_digest(tmp_path)
    file.rename(tmp_path / "a" / "other.csv")
    assert len({first, second, data_digest(tmp_path)}) == 3


def test_first_available_metric_heads_and_missing_is_null_with_reason() -> None:
    scores = Scores(
        metrics={"severe": unavailable("2 positive"), "covid": Estimate(0.8, (0.6, 0.9))},
        nulls={"prevalence": {"severe": unavailable("2 positive"), "covid": Estimate(0.5)}},
    )
    result = summarise(("severe", "covid"), scores)
    assert result["headline"] == {
        "name": "covid", "value": 0.8, "interval": [0.6, 0.9], "null": {"prevalence": 0.5},
    }  # fmt: skip
    assert result["metrics"]["severe"] == {"value": None, "interval": None, "reason": "2 positive"}
    assert result["unavailable"] == {"severe": "2 positive"}
    nothing = summarise(("severe",), scores)["headline"]
    assert nothing["value"] is None
    assert nothing["reason"] == "2 positive"
