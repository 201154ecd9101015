"""CT-RATE's cases, for the tasks that test on it. (spec/downstream 2 and 3)

Official layout: ``dataset/{train,valid}_fixed/valid_53/valid_53_a/valid_53_a_1.nii.gz`` (already
HU) or ``dataset/{train,valid}/...`` (raw: rescale and spacing from ``metadata/``), reports in
``dataset/radiology_text_reports``, labels in ``dataset/multi_abnormality_labels``. Patient = first
two parts of a name, scan = first three. The official "validation" set is the test set.
"""

import ast
from pathlib import Path
from typing import Literal

import pandas as pd

from mg3d.data.identity import pseudonym
from mg3d.data.sources.ct_rate import KNOWN_BAD as KNOWN_BAD_OF_TRAIN
from mg3d.finetuning.task import Case
from mg3d.ledger import Ledger, Reason

KNOWN_BAD = KNOWN_BAD_OF_TRAIN | {"valid_251_a_2"}
_PARTS = {"train": ("train", "train"), "valid": ("validation", "test")}
_NOT_GIVEN = "not given."
_NO_ROW: dict[str, object] = {}


def cases(data: Path, ledger: Ledger, needs: Literal["report", "labels"]) -> list[Case]:
    """One case per reconstruction, of ``*_fixed`` where a part has it, else of the raw files.

    Quarantined: names under ``no_chest_*`` and those known to be bad, raw volumes whose metadata
    lack rescale or spacing; what lacks what the task ``needs``: no report or one that is not
    given, no row of labels or one that is not 0 or 1. Raises ValueError if no
    part of the data set is there.
    """
    root = data / "dataset"
    found: list[Case] = []
    for part, (table_name, split) in _PARTS.items():
        fixed, raw = root / f"{part}_fixed", root / part
        folder = fixed if fixed.is_dir() else raw
        reports = _rows(root / "radiology_text_reports" / f"{table_name}_reports.csv")
        labels = _rows(root / "multi_abnormality_labels" / f"{part}_predicted_labels.csv")
        metadata = _rows(root / "metadata" / f"{table_name}_metadata.csv")
        no_chest = root / "metadata" / f"no_chest_{part}.txt"
        excluded = set(no_chest.read_text().split()) if no_chest.exists() else set()
        for image in sorted(folder.rglob("*.nii.gz")):
            name = image.name.removesuffix(".nii.gz")
            case_id = pseudonym("case", name)
            ledger.declare(case_id)
            text = _report(reports.get(name))
            geometry = _raw_geometry(metadata.get(name, _NO_ROW)) if folder == raw else _FIXED
            if excluded & {name, image.name}:
                ledger.quarantine(case_id, Reason.NOT_CHOSEN, "listed as no chest")
            elif name in KNOWN_BAD:
                ledger.quarantine(case_id, Reason.KNOWN_BAD)
            elif needs == "labels" and name not in labels:
                ledger.quarantine(case_id, Reason.INVALID_LABEL, "no row of labels")
            elif needs == "labels" and not set(labels[name].values()) <= {0, 1}:
                ledger.quarantine(case_id, Reason.INVALID_LABEL, "labels must be 0 or 1")
            elif needs == "report" and name not in reports:
                ledger.quarantine(case_id, Reason.STUDY_WITHOUT_REPORT)
            elif needs == "report" and not text:
                ledger.quarantine(case_id, Reason.REPORT_NOT_GIVEN)
            elif geometry is None:
                ledger.quarantine(case_id, Reason.MISSING_TAG, "no rescale or spacing in metadata")
            else:
                tokens = name.split("_")
                row = labels.get(name, _NO_ROW)
                found.append(
                    Case(
                        case_id=case_id,
                        patient_id=pseudonym("patient", "_".join(tokens[:2])),
                        scan_id=pseudonym("scan", "_".join(tokens[:3])),
                        image=image,
                        text=text,
                        labels={str(label): int(str(value)) for label, value in row.items()},
                        split=split,
                        rescale=geometry[0],
                        spacing_mm=geometry[1],
                    )
                )
    if not found and not root.is_dir():
        raise ValueError(f"no folder {root}: CT-RATE ships everything under dataset/")
    return found


Geometry = tuple[tuple[float, float], tuple[float, float, float] | None]
_FIXED: Geometry = ((1.0, 0.0), None)  # *_fixed volumes are HU already: never rescale them again


def _rows(path: Path) -> dict[str, dict[str, object]]:
    """Rows by volume name without suffix; nothing if the file is not there."""
    if not path.exists():
        return {}
    table = pd.read_csv(path)
    names = table.pop("VolumeName").str.removesuffix(".nii.gz")
    return dict(zip(names, table.to_dict("records"), strict=True))  # type: ignore[arg-type]


def _report(row: dict[str, object] | None) -> str:
    """Findings and impression, a line each; parts that are empty or not given are left out."""
    parts = [str((row or {}).get(f"{name}_EN", "")).strip() for name in ("Findings", "Impressions")]
    return "\n".join(part for part in parts if part.lower() not in ("", "nan", _NOT_GIVEN))


def _raw_geometry(row: dict[str, object]) -> Geometry | None:
    """Slope and intercept, and spacing (x, y, z) in mm, of a raw volume; None if incomplete."""
    try:
        x, y = ast.literal_eval(str(row["XYSpacing"]))
        numbers = [float(str(row[key])) for key in ("RescaleSlope", "RescaleIntercept", "ZSpacing")]
    except (KeyError, ValueError, SyntaxError, TypeError):
        return None
    if any(number != number for number in (x, y, *numbers)):
        return None
    return (numbers[0], numbers[1]), (float(x), float(y), numbers[2])
