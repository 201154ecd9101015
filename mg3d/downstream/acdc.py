"""ACDC: outline right ventricle, myocardium and left ventricle in cine MR. (spec/downstream 10)

Official layout: ``database/training/patient001/`` with Info.cfg (``ED: 1``, ``ES: 12``,
``Group: DCM``), ``patient001_frame01.nii.gz``, ``..._frame01_gt.nii.gz``; ``database/testing/``
likewise. Test is the official testing folder; validation is the first fold of nnU-Net's list for
this data set, by patient; a ``splits_final.json`` in database/training replaces that list.
"""

from pathlib import Path

import numpy as np

from mg3d.data.identity import pseudonym
from mg3d.finetuning.mask_scores import Classes
from mg3d.finetuning.segmentation import Segmentation
from mg3d.finetuning.split_files import Listed
from mg3d.finetuning.splits import nnunet_folds
from mg3d.finetuning.task import Case, DownstreamTask
from mg3d.ledger import Ledger, Reason

PHASES = {"ED": "end_diastole", "ES": "end_systole"}
NUM_FOLDS, SHUFFLE_SEED = 5, 1234  # nnU-Net's


def cases(data: Path, ledger: Ledger) -> list[Case]:
    """Two cases per patient, the frames that Info.cfg calls ED and ES.

    Quarantined: a frame without mask or image, a patient whose Info.cfg names no frame or one frame
    twice. Raises ValueError without the training folder.
    """
    root = data / "database" if (data / "database").is_dir() else data
    if not (root / "training").is_dir():
        raise ValueError(f"no folder {root / 'training'}: ACDC ships database/training and testing")
    folders = sorted(path for path in root.glob("t*ing/patient*") if path.is_dir())
    folds = patient_folds([f.name for f in folders if f.parent.name == "training"])
    listed = nnunet_folds(root / "training")

    def part(folder: Path, name: str) -> tuple[str | None, int | None]:
        if folder.parent.name == "testing":
            return "test", None
        if listed is None:
            fold = folds[folder.name]
            return "train" if fold else "validation", fold
        in_first, number = listed.get(name, ("", None))
        return {"train": "train", "val": "validation"}.get(in_first), number

    found = []
    for folder in folders:
        info = read_info(folder / "Info.cfg")
        for key, phase in PHASES.items():
            case_id = pseudonym("case", f"{folder.name}/{phase}")
            ledger.declare(case_id)
            number = info.get(key, "")
            name = f"{folder.name}_frame{number.zfill(2)}"
            image, mask = folder / f"{name}.nii.gz", folder / f"{name}_gt.nii.gz"
            split, fold = part(folder, name)
            if not number.isdigit() or info.get("ED") == info.get("ES"):
                ledger.quarantine(case_id, Reason.MISSING_TAG, f"no {key} of its own in Info.cfg")
            elif not image.is_file():
                ledger.quarantine(case_id, Reason.ORPHAN_MASK, f"no image of the frame {key}")
            elif not mask.is_file():
                ledger.quarantine(case_id, Reason.ORPHAN_IMAGE, f"no mask of the frame {key}")
            elif split is None:
                ledger.quarantine(case_id, Reason.NOT_IN_SPLIT, "not in the first fold")
            else:
                patient_id, labels = pseudonym("patient", folder.name), _one_of_phases(phase)
                stratum = info.get("Group", "")
                found.append(
                    Case(
                        case_id,
                        patient_id,
                        image,
                        labels,
                        mask,
                        split=split,
                        stratum=stratum,
                        fold=fold,
                    )
                )
    return found


def _one_of_phases(phase: str) -> dict[str, int | None]:
    return {name: int(name == phase) for name in PHASES.values()}


def patient_folds(patients: list[str]) -> dict[str, int]:
    """nnU-Net's five folds of the training patients: shuffled, then every fifth."""
    order = np.array(sorted(set(patients)))
    np.random.RandomState(SHUFFLE_SEED).shuffle(order)
    return {patient: number % NUM_FOLDS for number, patient in enumerate(order.tolist())}


def read_info(file: Path) -> dict[str, str]:
    """The lines ``key: value`` of Info.cfg; empty without the file."""
    lines = file.read_text().splitlines() if file.is_file() else []
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


TASK = DownstreamTask(
    name="acdc",
    version="1",
    kind=Segmentation(
        Classes(
            ("rv", "myocardium", "lv"),
            tolerance_mm=2.0,
            phases=(PHASES["ED"], PHASES["ES"]),
            ventricles=("lv", "rv"),
        ),
        mirror=False,
    ),
    cases=cases,
    headline=("dice",),
    citation="Bernard et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-Structures "
    "Segmentation and Diagnosis: Is the Problem Solved?, IEEE TMI 37(11), 2018",
    licence="CC BY-NC-SA 4.0",
    listed=Listed("patient", lambda case: case.image.parent.name),
)
