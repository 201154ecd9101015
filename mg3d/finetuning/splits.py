"""Who is trained on, who validates, who is tested: by patient, and the same for every seed.

Three sources, in this order: what the data set itself fixes (`Case.split`, `Case.fold`), a rule (a
hash within each stratum), or with ``split: file`` a list in the repository (`split_files`), which
replaces both. Cross-validation (``fold: k``) takes official folds where the cases have them and
deals the patients otherwise.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mg3d.finetuning.cases import SPLITS, Case, Split

SPLIT_SEED = 0  # a split belongs to the task: every mode and seed is tested on the same cases
NUM_FOLDS = 5
NNUNET_FILE = "splits_final.json"


def split_cases(
    cases: Sequence[Case],
    *,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
    fold: int | None = None,
) -> Split:
    """Train, validation and test, disjoint by patient.

    An official test set (``Case.split == "test"``) is kept and the rest divides; otherwise test is
    drawn too. Patients are ordered by stratum, then by a hash of seed and id, and every k-th goes
    to test: exact shares, in every stratum, whatever the order of the files. With ``fold`` the
    parts are those of one fold (`of_fold`).
    Raises ValueError if a patient is on both sides of an official split, or there is no such fold.
    """
    if fold is not None:
        cases = of_fold(cases, fold, seed=seed)
    strata = _strata(cases)
    official: dict[str, str | None] = {}
    for case in cases:
        known = official.setdefault(case.patient_id, case.split)
        if known != case.split:
            raise ValueError(
                f"{case.patient_id} is in {known} and in {case.split}: repair the official split, "
                "a patient may be in one part only"
            )
    part = {patient: name for patient, name in official.items() if name is not None}
    open_patients = [p for p in strata if p not in part or part[p] == "train"]
    has_official = bool(part)
    if not has_official:
        chosen = every_kth(open_patients, strata, seed, "test", test_fraction)
        part.update(dict.fromkeys(chosen, "test"))
    if "validation" not in part.values():
        rest = [patient for patient in open_patients if part.get(patient) != "test"]
        share = validation_fraction / (1 - (0 if has_official else test_fraction))
        chosen = every_kth(rest, strata, seed, "validation", share)
        part.update(dict.fromkeys(chosen, "validation"))
    split: Split = {name: [] for name in SPLITS}
    for case in sorted(cases, key=lambda case: case.case_id):
        split[part.get(case.patient_id, "train")].append(case)
    return split


def of_fold(cases: Sequence[Case], fold: int, *, seed: int) -> list[Case]:
    """The same cases with the parts of one fold of a cross-validation.

    With a test set outside the folds (ACDC's fifty) that stays test, fold ``fold`` validates and
    the others train. Without, fold ``fold`` is test; the fold before it validates if the data set's
    own split validates on a whole fold (LUNA16), otherwise validation is drawn from the rest.
    Raises ValueError if there is no such fold.
    """
    if all(case.fold is None for case in cases):
        cases = _with_folds(cases, seed)
    folds = sorted({case.fold for case in cases if case.fold is not None})
    if fold not in folds:
        raise ValueError(f"there is no fold {fold}: take one of {folds}, or null for none")
    has_test = any(case.split == "test" and case.fold is None for case in cases)
    validates = any(case.split == "validation" and case.fold is not None for case in cases)
    part: dict[int | None, str] = {fold: "validation" if has_test else "test"}
    if validates and not has_test:
        part[folds[folds.index(fold) - 1]] = "validation"
    found = []
    for case in cases:
        outside = "test" if case.split == "test" else "train"
        split = outside if case.fold is None else part.get(case.fold, "train")
        found.append(replace(case, split=split))
    return found


def _with_folds(cases: Sequence[Case], seed: int) -> list[Case]:
    """`NUM_FOLDS` folds of the patients outside an official test set."""
    known = {case.patient_id for case in cases if case.split == "test"}
    strata = {p: s for p, s in _strata(cases).items() if p not in known}
    folds = deal(strata, seed)
    return [replace(case, fold=folds.get(case.patient_id)) for case in cases]


def deal(strata: Mapping[str, str], seed: int) -> dict[str, int]:
    """Fold by patient: dealt like cards, stratum after stratum, in the order of a hash, so that the
    folds are of one size, in all and in each stratum, to within one."""
    ordered = sorted(strata, key=lambda patient: _rank(patient, strata, seed, "fold"))
    return {patient: number % NUM_FOLDS for number, patient in enumerate(ordered)}


def every_kth(
    patients: Sequence[str], strata: Mapping[str, str], seed: int, purpose: str, share: float
) -> list[str]:
    """A share of ``patients``, spread evenly over strata, chosen by hash."""
    ordered = sorted(patients, key=lambda patient: _rank(patient, strata, seed, purpose))
    return [
        patient
        for index, patient in enumerate(ordered)
        if int((index + 1) * share + 0.5) > int(index * share + 0.5)
    ]


def split_sha256(split: Split) -> str:
    """Digest of which case is where."""
    ids = {name: [case.case_id for case in cases] for name, cases in split.items()}
    return hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()


def nnunet_folds(folder: Path) -> dict[str, tuple[str, int | None]] | None:
    """nnU-Net's ``splits_final.json``, a list of folds ``{"train": [names], "val": [names]}``.

    By name (of a file, without ending: ``lung_001``, ``patient001_frame01``): ``train`` or ``val``
    in the first fold, and the number of the fold that it validates; no number where the list is no
    cross-validation, in which each name validates once. None without the file. Who is in the same
    fold with the same patient is for `split_cases` to refuse.
    Raises ValueError for another format and for a name in both parts of a fold.
    """
    file = folder / NNUNET_FILE
    if not file.exists():
        return None
    try:
        folds = [
            {part: [str(name) for name in fold[part]] for part in ("train", "val")}
            for fold in json.loads(file.read_text())
        ]
        first = folds[0]
    except (ValueError, KeyError, IndexError, TypeError):
        raise ValueError(
            f'{file} is no nnU-Net split: expected a list of {{"train": [...], "val": [...]}}'
        ) from None
    for number, fold in enumerate(folds):
        twice = sorted(set(fold["train"]) & set(fold["val"]))
        if twice:
            raise ValueError(f"{file}: {twice[0]} is in train and in val of fold {number}")
    validates = [name for fold in folds for name in fold["val"]]
    everyone = set(validates)
    crossed = len(validates) == len(everyone) and all(
        set(fold["train"]) == everyone - set(fold["val"]) for fold in folds
    )
    number_of = {name: number for number, fold in enumerate(folds) for name in fold["val"]}
    return {
        name: (part, number_of[name] if crossed and len(folds) > 1 else None)
        for part, names in first.items()
        for name in names
    }


def _strata(cases: Sequence[Case]) -> dict[str, str]:
    """Stratum by patient, the last in alphabetical order if the cases differ."""
    strata: dict[str, str] = {}
    for case in cases:
        strata[case.patient_id] = max(case.stratum, strata.get(case.patient_id, ""))
    return strata


def _rank(patient: str, strata: Mapping[str, str], seed: int, purpose: str) -> tuple[str, str]:
    return strata[patient], hashlib.sha256(f"{seed}/{purpose}/{patient}".encode()).hexdigest()
