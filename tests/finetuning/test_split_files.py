"""Split files: what is shipped is what the rule gives, and a list says who takes part."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mg3d.finetuning import split_files
from mg3d.finetuning.cases import Case
from mg3d.finetuning.split_files import Listed, as_csv, as_listed, listing, read_split, split_file
from mg3d.finetuning.splits import split_cases
from mg3d.ledger import Ledger, Reason

BY_STEM = Listed("patient", lambda case: case.image.stem)


def case(name: str, **fields: str) -> Case:
    return Case(f"case-of-{name}", f"pseudonym-{hash(name)}", Path(f"{name}.mha"), **fields)  # type: ignore[arg-type]


def test_stoics_list_is_what_the_rule_gives_to_its_numbers() -> None:
    """Numbers 0 to 10735, of which 2000 are public; without labels, so not by outcome."""
    cases = [case(str(number)) for number in range(10736)]
    shipped = split_file("stoic2021").read_text()
    assert as_csv("patient", listing(cases[::-1], BY_STEM.name_of)) == shipped
    listed = read_split(split_file("stoic2021"), BY_STEM)
    assert Counter(part for part, _ in listed.values()) == {
        "train": 6871, "validation": 1718, "test": 2147,
    }  # fmt: skip
    assert {fold for part, fold in listed.values() if part == "validation"} == {0}


def test_test_is_a_fifth_and_folds_are_even_in_every_stratum() -> None:
    cases = [case(str(n), stratum="severe" if n % 4 == 0 else "mild") for n in range(200)]
    found = listing(cases, BY_STEM.name_of)
    for stratum, of_test in (("severe", 10), ("mild", 30)):
        places = Counter(found[c.image.stem] for c in cases if c.stratum == stratum)
        assert places["test", None] == of_test
        assert len({places["validation" if fold == 0 else "train", fold] for fold in range(5)}) == 1


def test_official_parts_are_kept_and_a_patients_cases_stay_together() -> None:
    cases = [replace(case(str(n)), patient_id=f"p{n // 2}") for n in range(40)]
    cases = [replace(c, split="test" if n < 6 else "train") for n, c in enumerate(cases)]
    found = listing(cases, BY_STEM.name_of)
    assert [name for name, (part, _) in found.items() if part == "test"] == list("012345")
    assert all(found[str(n)] == found[str(n + 1)] for n in range(0, 40, 2))
    own = [replace(c, split="validation") if c.patient_id == "p9" else c for c in cases]
    assert Counter(listing(own, BY_STEM.name_of).values()) == {
        ("train", None): 32, ("validation", None): 2, ("test", None): 6,
    }  # fmt: skip
    with pytest.raises(ValueError, match="p0 is in two parts of the official split"):
        listing([replace(cases[0], split="train"), *cases[1:]], BY_STEM.name_of)
    with pytest.raises(ValueError, match="cases of one name"):
        listing([replace(c, image=Path("x")) for c in cases], BY_STEM.name_of)


def test_cases_that_are_not_listed_are_left_out_and_absent_ones_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_files, "FOLDER", tmp_path)
    (tmp_path / "t.csv").write_text(
        "patient,part,fold\na,train,1\nb,validation,0\nc,test,\nd,train,2\n"
    )
    cases = [case(name, split="train") for name in "abcx"]
    ledger = Ledger("t", "case", [c.case_id for c in cases])
    found = as_listed("t", cases, BY_STEM, ledger)
    assert {c.image.stem: (c.split, c.fold) for c in found} == {
        "a": ("train", 1), "b": ("validation", 0), "c": ("test", None),
    }  # fmt: skip
    assert [(e.input_id, e.reason) for e in ledger.entries] == [("case-of-x", Reason.NOT_IN_SPLIT)]
    for c in found:
        ledger.use(c.case_id)
    assert ledger.summary()["counts"] == {"listed_without_case": 1}
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.2}
    split = split_cases(found, seed=0, **fractions, fold=1)
    assert [c.image.stem for part in split.values() for c in part] == ["b", "a", "c"]
    with pytest.raises(ValueError, match=r"set downstream.u.split to rule, or run `mg3d write_spl"):
        as_listed("u", cases, BY_STEM, ledger)
    with pytest.raises(ValueError, match=r"u has no split file u.csv: set downstream.u.split to "):
        as_listed("u", cases, None, ledger)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient,part\na,train\n", "expected"),
        ("patient,part,fold\na,train,\na,test,\n", "line 3: a name must be there once: 'a'"),
        ("patient,part,fold\na,valid,\n", "line 2: part 'valid' is none of"),
        ("patient,part,fold\na,test,1\n", "line 2: fold '1': a number, empty for test"),
    ],
)
def test_what_no_split_file_may_hold(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_split(tmp_path / "t.csv", BY_STEM)
