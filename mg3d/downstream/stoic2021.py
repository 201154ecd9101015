"""STOIC2021: is the patient COVID-positive, and will the course be severe? (spec/downstream 7)

Official layout: ``data/mha/<PatientID>.mha`` and ``metadata/reference.csv`` with the columns
PatientID, probCOVID, probSevere (0 or 1; severe = death or intubation within a month).
"""

from pathlib import Path

import pandas as pd

from mg3d.data.identity import pseudonym
from mg3d.finetuning import classification
from mg3d.finetuning.split_files import Listed
from mg3d.finetuning.task import Case, DownstreamTask
from mg3d.ledger import Ledger, Reason


def cases(data: Path, ledger: Ledger) -> list[Case]:
    """One case per patient. Severity applies to COVID-positives only, so it is None for the others.

    Quarantined: a label that is not 0 or 1, severe without COVID, a patient listed twice, a row
    without volume, a volume without row. Raises ValueError without reference.csv or its columns.
    """
    reference = data / "metadata" / "reference.csv"
    if not reference.exists():
        raise ValueError(f"no {reference}: STOIC2021 ships it beside data/mha")
    table = pd.read_csv(reference, dtype={"PatientID": str})
    missing = {"PatientID", "probCOVID", "probSevere"} - set(table.columns)
    if missing:
        raise ValueError(f"{reference} lacks the columns {sorted(missing)}")

    images = {path.stem: path for path in sorted((data / "data" / "mha").glob("*.mha"))}
    found = []
    for patient, rows in table.groupby("PatientID", sort=True):
        case_id = pseudonym("case", str(patient))
        ledger.declare(case_id)
        image = images.pop(str(patient), None)
        labels = rows[["probCOVID", "probSevere"]].to_numpy().tolist()
        covid, severe = labels[0]
        if len(rows) > 1:
            ledger.quarantine(case_id, Reason.INVALID_LABEL, f"{len(rows)} rows")
        elif covid not in (0, 1) or severe not in (0, 1):
            ledger.quarantine(case_id, Reason.INVALID_LABEL, "labels must be 0 or 1")
        elif severe and not covid:
            ledger.quarantine(case_id, Reason.INVALID_LABEL, "severe without COVID")
        elif image is None:
            ledger.quarantine(case_id, Reason.UNREADABLE, "no volume for this row")
        else:
            found.append(
                Case(
                    case_id=case_id,
                    patient_id=pseudonym("patient", str(patient)),
                    image=image,
                    labels={"covid": int(covid), "severe": int(severe) if covid else None},
                    stratum=f"covid{int(covid)}-severe{int(severe)}",
                )
            )
    for stem in images:
        case_id = pseudonym("case", stem)
        ledger.declare(case_id)
        ledger.quarantine(case_id, Reason.ORPHAN_IMAGE, "no row in reference.csv")
    return found


TASK = DownstreamTask(
    name="stoic2021",
    version="1",
    kind=classification,
    cases=cases,
    headline=("severe_auroc", "covid_auroc"),
    citation="Revel et al., Study of Thoracic CT in COVID-19: The STOIC Project, Radiology 2021",
    licence="CC BY-NC 4.0",
    listed=Listed("patient", lambda case: case.image.stem),
)
