"""Split files: ``mg3d/downstream/splits/<task>.csv``, patients of a data set by part and fold.

Fixed lists where the field's splits leak or do not exist. Columns: ``patient`` (or ``case``, where
nobody says which studies are of one patient), the name that the data set itself gives; ``part``:
train, validation or test; ``fold``, empty for test: with ``fold: k`` that fold validates, by
default the fold 0. Written by `listing`, a rule without chance: the test set that the data set has
or a fifth of the patients, the others dealt into five folds, both within each stratum (ACDC's
pathology, STOIC's outcome), in the order of a hash of the names. No key and no order of files
enters, so who has the data gets the same file.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mg3d import fingerprint, paths
from mg3d.finetuning.cases import SPLITS, Case
from mg3d.finetuning.splits import SPLIT_SEED, deal, every_kth
from mg3d.ledger import Ledger, Reason

FOLDER = fingerprint.PACKAGE / "downstream" / "splits"
TEST_FRACTION = 0.2
COLUMNS = ("part", "fold")
NAMES = ("patient", "case")
Place = tuple[str, int | None]


@dataclass(frozen=True)
class Listed:
    """How a split file names a case: ``column`` says whose name it is, patient or case."""

    column: str
    name_of: Callable[[Case], str]


def split_file(task: str) -> Path:
    """Where the split file of a downstream task lies."""
    return FOLDER / f"{task}.csv"


def listing(cases: Sequence[Case], name_of: Callable[[Case], str]) -> dict[str, Place]:
    """Part and fold by name, sorted: shorter names first, so that numbers are in order.

    Cases of one patient stay together. A validation set that the data set has is kept; then there
    are no folds. Raises ValueError if a patient is on both sides of an official split.
    """
    names: dict[str, set[str]] = {}
    official: dict[str, set[str]] = {}
    strata: dict[str, str] = {}
    for case in cases:
        names.setdefault(case.patient_id, set()).add(name_of(case))
        part = case.split if case.split == "test" or case.fold is None else None
        official.setdefault(case.patient_id, set()).add(part or "train")
        strata[case.patient_id] = max(case.stratum, strata.get(case.patient_id, ""))
    if leaking := sorted(patient for patient, parts in official.items() if len(parts) > 1):
        raise ValueError(f"{leaking[0]} is in two parts of the official split: repair it first")
    # The pseudonyms depend on a key: patients go by the first of their own names.
    first = {patient: min(of_patient) for patient, of_patient in names.items()}
    part_of = {first[patient]: parts.pop() for patient, parts in official.items()}
    stratum_of = {first[patient]: stratum for patient, stratum in strata.items()}
    if "test" not in part_of.values():
        test = every_kth(sorted(stratum_of), stratum_of, SPLIT_SEED, "test", TEST_FRACTION)
        part_of |= dict.fromkeys(test, "test")
    folds: dict[str, int] = {}
    if "validation" not in part_of.values():
        folds = deal({p: s for p, s in stratum_of.items() if part_of[p] == "train"}, SPLIT_SEED)
        part_of |= {patient: "validation" for patient, fold in folds.items() if fold == 0}
    found = {
        name: (part_of[first[patient]], folds.get(first[patient]))
        for patient, of_patient in names.items()
        for name in of_patient
    }
    if len(found) < sum(map(len, names.values())):
        raise ValueError("two patients have cases of one name: a split file cannot tell them apart")
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def as_csv(column: str, listed: dict[str, Place]) -> str:
    """The text of a split file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((column, *COLUMNS))
    writer.writerows((name, part, fold) for name, (part, fold) in listed.items())
    return out.getvalue()


def write_split(task: str, cases: Sequence[Case], listed: Listed | None, out: Path) -> Path:
    """Write the split file of ``cases`` to ``out``.

    Raises ValueError for a task without names for such a file, and without cases.
    """
    if listed is None:
        raise ValueError(f"{task} has no split file: its own split is by patient, use split: rule")
    if not cases:
        raise ValueError(f"no usable case of {task}: is it the official layout?")
    with paths.atomic_write(out) as temporary:
        temporary.write_text(as_csv(listed.column, listing(cases, listed.name_of)))
    return out


def read_split(file: Path, listed: Listed) -> dict[str, Place]:
    """Part and fold by name. Raises ValueError, with the line, for what no split file may hold."""
    with file.open(encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
        header = (listed.column, *COLUMNS)
        if tuple(reader.fieldnames or ()) != header:
            raise ValueError(f"{file} has the columns {reader.fieldnames}: expected {list(header)}")
        found: dict[str, Place] = {}
        for line, row in enumerate(reader, 2):
            name, part, fold = (row[column] for column in header)
            if not name or name in found:
                raise ValueError(f"{file} line {line}: a name must be there once: {name!r}")
            if part not in SPLITS:
                raise ValueError(f"{file} line {line}: part {part!r} is none of {list(SPLITS)}")
            if fold and (part == "test" or not fold.isdecimal()):
                raise ValueError(f"{file} line {line}: fold {fold!r}: a number, empty for test")
            found[name] = part, int(fold) if fold else None
    return found


def as_listed(
    task: str, cases: Sequence[Case], listed: Listed | None, ledger: Ledger
) -> list[Case]:
    """The cases with part and fold of the task's split file.

    Quarantined: cases that it does not list. Counted (``listed_without_case``): names without a
    usable case. Raises ValueError without a split file.
    """
    file = split_file(task)
    if listed is None or not file.is_file():
        remedy = f"set downstream.{task}.split to rule"
        if listed is not None:
            remedy += f", or run `mg3d write_split {task}`"
        raise ValueError(f"{task} has no split file {file.name}: {remedy}")
    places = read_split(file, listed)
    found, seen = [], set()
    for case in cases:
        name = listed.name_of(case)
        seen.add(name)
        if name in places:
            part, fold = places[name]
            found.append(replace(case, split=part, fold=fold))
        else:
            ledger.quarantine(case.case_id, Reason.NOT_IN_SPLIT, f"not in splits/{file.name}")
    ledger.count("listed_without_case", len(places.keys() - seen))
    return found
