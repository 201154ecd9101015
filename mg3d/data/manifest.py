"""STAGE build_manifest: packed volumes and segmented reports -> one row per pair, split by patient.

A patient's split depends on the patient's pseudonym and the seed alone: SHA-256 of both, read as a
number in [0, 1), is compared with the fractions. So a patient never changes sides when others come
or go, and two studies of a patient never part. Fractions hold in expectation, not exactly.

Studies and reports join by accession number. Of several studies under one number the one with most
slices is taken (of equals the first by id), as one report cannot be split among them.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d import paths
from mg3d.ledger import Ledger, Reason
from mg3d.params import BuildManifest

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    *("study_id", "patient_id", "report_id", "split", "volume", "volume_sha256"),
    *("contract_digest", "num_sentences"),
]
SPLITS = ("train", "validation", "test")


def assign_split(patient_id: str, params: BuildManifest) -> str:
    """The split of a patient: ``train``, ``validation`` or ``test``."""
    digest = hashlib.sha256(f"{params.seed}:{patient_id}".encode()).hexdigest()
    position = int(digest[:13], 16) / 16**13
    if position < params.test_fraction:
        return "test"
    if position < params.test_fraction + params.validation_fraction:
        return "validation"
    return "train"


def split_hash(splits: dict[str, list[str]]) -> str:
    """SHA-256 of the study ids of each split, order of ids within a split aside."""
    canonical = {name: sorted(splits[name]) for name in SPLITS}
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def check_table(table: "pd.DataFrame", columns: Sequence[str], key: str, name: str) -> None:
    """Raise ValueError unless ``table`` has the ``columns``, no value missing, ``key`` unique."""
    remedy = f"{name} was not written by this version: run `dvc repro --force`"
    for column in columns:
        if column not in table.columns:
            raise ValueError(f"{name} lacks the column {column!r}; {remedy}")
        if table[column].isna().any():
            raise ValueError(f"{name} has an empty {column!r}; {remedy}")
    if table[key].duplicated().any():
        raise ValueError(f"{name} has {key} {table[key][table[key].duplicated()].iloc[0]} twice")


def read_table(path: Path, columns: Sequence[str], key: str) -> "pd.DataFrame":
    """A checked table of an earlier stage. Raises ValueError if it is absent or malformed."""
    import pandas as pd

    if not path.is_file():
        raise ValueError(f"no {path}: run `dvc repro`, or the stage {path.parent.name}")
    table = pd.read_parquet(path)
    check_table(table, columns, key, f"{path.parent.name}/{path.name}")
    return table


def build_manifest(source: Path, out: Path, params: BuildManifest) -> Ledger:
    """Join the stages under ``source`` (prepared): ``out/manifest.parquet``, ``out/splits.json``.

    The ledger counts studies and reports: a pair uses one of each. ``volume`` is relative to
    ``source``. Returns the ledger, also written to ``out``. Raises ValueError if a table is absent
    or malformed, or no pair is left for training.
    """
    import pandas as pd

    converted = read_table(
        paths.stage_folder("convert_dicom", source) / paths.MANIFEST,
        ("study_id", "patient_id", "accession_id", "num_slices"),
        "study_id",
    )
    packed = read_table(
        paths.stage_folder("pack_volumes", source) / paths.MANIFEST,
        ("study_id", "volume", "volume_sha256", "contract_digest"),
        "study_id",
    )
    sentences = read_table(
        paths.stage_folder("segment_sentences", source) / paths.SENTENCE_TABLE,
        ("report_id", "accession_id", "sentence_id"),
        "sentence_id",
    )
    if packed["contract_digest"].nunique() > 1:
        raise ValueError("volumes of two contracts in pack_volumes: run `dvc repro --force`")
    studies = packed.merge(converted, on="study_id", how="left", validate="one_to_one")
    check_table(studies, ("patient_id", "accession_id"), "study_id", "pack_volumes' manifest")
    reports = sentences.groupby(["report_id", "accession_id"], as_index=False).size()
    reports = reports.rename(columns={"size": "num_sentences"})

    ledger = Ledger(
        "build_manifest", "study or report", [*studies["study_id"], *reports["report_id"]]
    )
    report_of = {row.accession_id: row for row in reports.itertuples()}
    volumes = paths.stage_folder("pack_volumes", Path()) / paths.VOLUMES
    rows = []
    studies = studies.sort_values(["num_slices", "study_id"], ascending=[False, True])
    for accession_id, group in studies.groupby("accession_id", sort=False):
        report = report_of.pop(accession_id, None)
        shared = group["patient_id"].nunique() > 1
        if report is not None and shared:
            ledger.quarantine(report.report_id, Reason.MIXED_PATIENTS, "accession of two patients")
        elif report is not None:
            ledger.use(report.report_id)
        for place, study in enumerate(group.itertuples()):
            if report is None:
                detail = "" if accession_id else "no accession number"
                ledger.quarantine(study.study_id, Reason.STUDY_WITHOUT_REPORT, detail)
            elif shared:
                ledger.quarantine(
                    study.study_id, Reason.MIXED_PATIENTS, "accession of two patients"
                )
            elif place:
                ledger.quarantine(study.study_id, Reason.NOT_CHOSEN, "accession of two studies")
            else:
                ledger.use(study.study_id)
                rows.append(
                    (
                        *(study.study_id, study.patient_id, report.report_id),
                        assign_split(study.patient_id, params),
                        (volumes / study.volume).as_posix(),
                        *(study.volume_sha256, study.contract_digest, report.num_sentences),
                    )
                )
    for report in report_of.values():
        ledger.quarantine(report.report_id, Reason.REPORT_WITHOUT_STUDY)

    manifest = pd.DataFrame(rows, columns=COLUMNS).sort_values("study_id")
    splits = {name: manifest.loc[manifest["split"] == name, "study_id"].tolist() for name in SPLITS}
    with paths.atomic_write(out / paths.MANIFEST) as temporary:
        manifest.to_parquet(temporary, index=False)
    with paths.atomic_write(out / paths.SPLITS) as temporary:
        temporary.write_text(json.dumps({**splits, "hash": split_hash(splits)}, indent=1) + "\n")
    ledger.write(out)
    if not splits["train"]:
        raise ValueError(f"no pair left for training: {ledger.summary()}")
    return ledger
