"""CT-RATE's cases, for the tasks that test on it. (spec/downstream 2 and 3)

Official layout: ``dataset/{train,valid}_fixed/valid_53/valid_53_a/valid_53_a_1.nii.gz`` (already
HU) or ``dataset/{train,valid}/...`` (raw: rescale and spacing from ``metadata/``), reports in
``dataset/radiology_text_reports``, labels in ``dataset/multi_abnormality_labels``. Patient = first
two parts of a name, scan = first three. The official "validation" set is the test set.
"""

from functools import partial
from pathlib import Path
from typing import Literal

from mg3d.data.identity import pseudonym
from mg3d.data.sources.ct_rate import KNOWN_BAD as KNOWN_BAD_OF_TRAIN
from mg3d.data.sources.ct_rate import metadata_of, read_raw, rows_by_volume
from mg3d.finetuning.task import Case
from mg3d.ledger import Ledger, Reason

KNOWN_BAD = KNOWN_BAD_OF_TRAIN | {"valid_251_a_2"}
_PARTS = {"train": ("train", "train"), "valid": ("validation", "test")}
_NOT_GIVEN = "not given."
_NO_ROW: dict[str, str] = {}


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
        reports = rows_by_volume(root / "radiology_text_reports" / f"{table_name}_reports.csv")
        labels = rows_by_volume(root / "multi_abnormality_labels" / f"{part}_predicted_labels.csv")
        metadata = rows_by_volume(root / "metadata" / f"{table_name}_metadata.csv")
        no_chest = root / "metadata" / f"no_chest_{part}.txt"
        excluded = set(no_chest.read_text().split()) if no_chest.exists() else set()
        for image in sorted(folder.rglob("*.nii.gz")):
            name = image.name.removesuffix(".nii.gz")
            case_id = pseudonym("case", name)
            ledger.declare(case_id)
            text = _report(reports.get(name, _NO_ROW))
            flags = _flags(labels.get(name, _NO_ROW))
            facts = metadata_of(metadata.get(name))
            if excluded & {name, image.name}:
                ledger.quarantine(case_id, Reason.NOT_CHOSEN, "listed as no chest")
            elif name in KNOWN_BAD:
                ledger.quarantine(case_id, Reason.KNOWN_BAD)
            elif needs == "labels" and name not in labels:
                ledger.quarantine(case_id, Reason.INVALID_LABEL, "no row of labels")
            elif needs == "labels" and flags is None:
                ledger.quarantine(case_id, Reason.INVALID_LABEL, "labels must be 0 or 1")
            elif needs == "report" and name not in reports:
                ledger.quarantine(case_id, Reason.STUDY_WITHOUT_REPORT)
            elif needs == "report" and not text:
                ledger.quarantine(case_id, Reason.REPORT_NOT_GIVEN)
            elif folder == raw and facts is None:
                ledger.quarantine(case_id, Reason.MISSING_TAG, "no rescale or spacing in metadata")
            else:
                tokens = name.split("_")
                found.append(
                    Case(
                        case_id=case_id,
                        patient_id=pseudonym("patient", "_".join(tokens[:2])),
                        scan_id=pseudonym("scan", "_".join(tokens[:3])),
                        image=image,
                        text=text,
                        labels=flags or {},
                        split=split,
                        read=partial(read_raw, image, facts)  # type: ignore[arg-type]
                        if folder == raw
                        else None,
                        facts=repr(facts) if folder == raw else "",
                    )
                )
    if not found and not root.is_dir():
        raise ValueError(f"no folder {root}: CT-RATE ships everything under dataset/")
    return found


def _flags(row: dict[str, str]) -> dict[str, int] | None:
    """The labels of a row of the table; None if one is not 0 or 1."""
    flags = {name: value for name, value in row.items() if name != "VolumeName"}
    try:
        found = {name: float(value) for name, value in flags.items()}
    except (TypeError, ValueError):
        return None
    return {k: int(v) for k, v in found.items()} if set(found.values()) <= {0, 1} else None


def _report(row: dict[str, str]) -> str:
    """Findings and impression, a line each; parts that are empty or not given are left out."""
    parts = [(row.get(f"{name}_EN") or "").strip() for name in ("Findings", "Impressions")]
    return "\n".join(part for part in parts if part.lower() not in ("", _NOT_GIVEN))
