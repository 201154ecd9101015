"""CC-CCII: normal, common pneumonia or COVID-19 pneumonia, from CT slices. (spec/downstream 5)

Official layout: ``{CP,NCP,Normal}/<patient_id>/<scan_id>/<slice>.{png,jpg}`` (COVID19 for
NCP in some mirrors) and ``unzip_filenames.csv`` with what the archives hold. 8-bit slices, no
spacing. The field's three folds overlap and have no test set, so the split is ours: by patient,
70/10/20, in every class, the same for every seed.
"""

import csv
from dataclasses import replace
from pathlib import Path

from mg3d.data.identity import pseudonym
from mg3d.data.slices import find_slices
from mg3d.finetuning import multiclass
from mg3d.finetuning.split_files import Listed
from mg3d.finetuning.splits import split_cases
from mg3d.finetuning.task import Case, DownstreamTask
from mg3d.ledger import Ledger, Reason

FOLDERS = {"Normal": "Normal", "CP": "CP", "NCP": "NCP", "COVID19": "NCP"}
CLASSES = ("CP", "NCP", "Normal")
# Damaged or out of order, by those who made COVIDx-CT: (class, patient, scan).
KNOWN_BAD = {
    ("NCP", "328", "1805"), ("NCP", "1058", "2635"), ("NCP", "868", "2395"), ("NCP", "868", "2396"),
    ("NCP", "869", "2397"), ("NCP", "911", "2453"), ("CP", "1781", "3567"), ("CP", "1769", "3516"),
}  # fmt: skip
SPLIT_SEED, VALIDATION_FRACTION, TEST_FRACTION = 0, 0.1, 0.2
LIST = "unzip_filenames.csv"


def cases(data: Path, ledger: Ledger) -> list[Case]:
    """One case per scan, one-hot labels.

    Quarantined: scans known to be bad, a patient under two classes, a scan of the list that is not
    there or has another number of slices (an archive unpacked in part). Raises ValueError if there
    is no folder of a class.
    """
    if not any((data / folder).is_dir() for folder in FOLDERS):
        raise ValueError(f"no folder CP, NCP or Normal in {data}: unpack the archives there")
    scans: dict[tuple[str, str, str], Path] = {}
    for name, label in FOLDERS.items():
        for folder in sorted((data / name).glob("[!._]*/[!._]*/")):
            scans[label, folder.parent.name, folder.name] = folder
    listed = _listed(data / LIST)
    classes: dict[str, set[str]] = {}
    for label, patient, _ in scans:
        classes.setdefault(patient, set()).add(label)
    found = []
    for key in sorted(scans.keys() | listed.keys()):
        label, patient, _ = key
        case_id = pseudonym("case", "/".join(key))
        ledger.declare(case_id)
        if key in KNOWN_BAD:
            ledger.quarantine(case_id, Reason.KNOWN_BAD)
        elif key not in scans:
            ledger.quarantine(case_id, Reason.UNREADABLE, "no folder for this row of the list")
        elif len(classes[patient]) > 1:
            ledger.quarantine(case_id, Reason.INVALID_LABEL, "a patient under two classes")
        elif key in listed and listed[key] != (there := len(find_slices(scans[key]))):
            detail = f"{there} of {listed[key]} slices"
            ledger.quarantine(case_id, Reason.MISSING_SLICE, detail)
        else:
            found.append(
                Case(
                    case_id=case_id,
                    patient_id=pseudonym("patient", patient),
                    image=scans[key],
                    labels={name: int(name == label) for name in CLASSES},
                    stratum=label,
                )
            )
    split = split_cases(
        found,
        seed=SPLIT_SEED,
        validation_fraction=VALIDATION_FRACTION,
        test_fraction=TEST_FRACTION,
    )
    return [replace(case, split=part) for part, of_part in split.items() for case in of_part]


def _listed(path: Path) -> dict[tuple[str, str, str], int]:
    """Number of slices by (class, patient, scan); nothing if the list is not there."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {
            (FOLDERS[row["label"]], row["patient_id"], row["scan_id"]): int(row["n_slice"])
            for row in csv.DictReader(file)
        }


TASK = DownstreamTask(
    name="cc_ccii",
    version="1",
    kind=multiclass,
    cases=cases,
    headline=("macro_auroc", "accuracy"),
    citation="Zhang et al., Clinically Applicable AI System for Accurate Diagnosis, Quantitative "
    "Measurements, and Prognosis of COVID-19 Pneumonia Using CT, Cell 181:1423-1433, 2020",
    licence="not found",
    listed=Listed("patient", lambda case: case.image.parent.name),
)
