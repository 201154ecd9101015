"""STAGE build_manifest: packed volumes and segmented reports -> one row per pair, split by patient.

Splits and shards are by hash (`planning`): nobody moves when others come or go. Reports of the same
words keep their ``text_group`` here, so that a contrastive loss may know them for what they are.

Studies and reports join by accession number. Of several studies under one number the one with most
slices is taken (of equals the first by id), as one report cannot be split among them. Everything
works on columns: a million studies take seconds (`benchmarks/planning.py`).
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d import paths
from mg3d.data.planning import SPLITS, assign_shards, assign_splits, hash_keys
from mg3d.data.schema import Column, check_table
from mg3d.ledger import Ledger, Reason
from mg3d.params import BuildManifest

if TYPE_CHECKING:
    import pandas as pd

SHA256, DIGEST = "[0-9a-f]{64}", "[0-9a-f]{16}"
COLUMNS = [
    Column("study_id", "text", "pseudonym; the key"),
    Column("patient_id", "text", "pseudonym; a patient is in one split"),
    Column("report_id", "text", "pseudonym"),
    Column("text_group", "text", "equal for reports of the same words"),
    Column("split", "text", "by patient", choices=SPLITS),
    Column("shard", "text", "studies of a split that are moved together"),
    Column("volume", "text", "packed volume, relative to prepared/"),
    Column("volume_sha256", "text", "of that file", pattern=SHA256),
    Column("contract_digest", "text", "of the volume contract", pattern=DIGEST),
    Column("num_sentences", "whole", "of the report, after the cut", "sentences", at_least=1),
]


def split_hash(splits: dict[str, list[str]]) -> str:
    """SHA-256 of the study ids of each split, order of ids within a split aside."""
    canonical = {name: sorted(splits[name]) for name in SPLITS}
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def read_table(path: Path, columns: Sequence[Column | str], key: str) -> "pd.DataFrame":
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
    reports = read_table(
        paths.stage_folder("segment_sentences", source) / paths.REPORT_TABLE,
        ("report_id", "accession_id", "text_group", "num_sentences"),
        "report_id",
    )
    check_table(reports, (), "accession_id", "segment_sentences' reports")
    if packed["contract_digest"].nunique() > 1:
        raise ValueError("volumes of two contracts in pack_volumes: run `dvc repro --force`")
    of_study = ["study_id", "patient_id", "accession_id", "num_slices"]
    studies = packed.merge(converted[of_study], on="study_id", how="left", validate="one_to_one")
    check_table(studies, ("patient_id", "accession_id"), "study_id", "pack_volumes' manifest")

    ledger = Ledger(
        "build_manifest", "study or report", [*studies["study_id"], *reports["report_id"]]
    )
    manifest = plan(join(studies, reports, ledger), params)
    volumes = paths.stage_folder("pack_volumes", Path()) / paths.VOLUMES
    manifest["volume"] = f"{volumes.as_posix()}/" + manifest["volume"]
    manifest = manifest[[column.name for column in COLUMNS]]
    check_table(manifest, COLUMNS, "study_id", "build_manifest/manifest.parquet")
    groups = manifest["text_group"].value_counts()
    ledger.count("patients", manifest["patient_id"].nunique())
    ledger.count("shards", manifest["shard"].nunique())
    ledger.count("pairs_of_a_text_that_others_have", int(groups[groups > 1].sum()))
    for split in SPLITS:
        ledger.count(f"pairs_in_{split}", int((manifest["split"] == split).sum()))

    splits = {name: manifest.loc[manifest["split"] == name, "study_id"].tolist() for name in SPLITS}
    with paths.atomic_write(out / paths.MANIFEST) as temporary:
        manifest.to_parquet(temporary, index=False)
    with paths.atomic_write(out / paths.SPLITS) as temporary:
        temporary.write_text(json.dumps({**splits, "hash": split_hash(splits)}, indent=1) + "\n")
    ledger.write(out)
    if not splits["train"]:
        raise ValueError(f"no pair left for training: {ledger.summary()}")
    return ledger


def join(studies: "pd.DataFrame", reports: "pd.DataFrame", ledger: Ledger) -> "pd.DataFrame":
    """Pairs of a study and a report, one per accession number; settles both in ``ledger``."""
    studies = studies.sort_values(["num_slices", "study_id"], ascending=[False, True])
    accession = studies["accession_id"]
    patients = studies[["accession_id", "patient_id"]].drop_duplicates()["accession_id"]
    shared = set(patients[patients.duplicated()])  # one number, two patients
    has_report = accession.isin(reports["accession_id"])
    is_shared = accession.isin(shared)
    chosen = ~accession.duplicated()

    def ids(rows: "pd.Series") -> list[str]:
        return studies.loc[rows, "study_id"].tolist()

    none, mixed = Reason.STUDY_WITHOUT_REPORT, Reason.MIXED_PATIENTS
    ledger.quarantine_all(ids(~has_report & (accession != "")), none)
    ledger.quarantine_all(ids(~has_report & (accession == "")), none, "no accession number")
    ledger.quarantine_all(ids(has_report & is_shared), mixed, "accession of two patients")
    ledger.quarantine_all(
        ids(has_report & ~is_shared & ~chosen), Reason.NOT_CHOSEN, "accession of two studies"
    )
    pairs = studies[has_report & ~is_shared & chosen].merge(reports, on="accession_id")
    ledger.use_all(pairs["study_id"])
    ledger.use_all(pairs["report_id"])
    without_study = ~reports["accession_id"].isin(accession)
    of_shared = reports["accession_id"].isin(shared)
    ledger.quarantine_all(reports.loc[of_shared, "report_id"], mixed, "accession of two patients")
    ledger.quarantine_all(reports.loc[without_study, "report_id"], Reason.REPORT_WITHOUT_STUDY)
    return pairs


def plan(pairs: "pd.DataFrame", params: BuildManifest) -> "pd.DataFrame":
    """``pairs`` (``study_id``, ``patient_id``), sorted by study, with their split and shard."""
    planned = pairs.sort_values("study_id", ignore_index=True)
    splits = assign_splits(planned["patient_id"], params)
    keys = hash_keys(planned["study_id"].tolist())
    shards = assign_shards(splits, keys, params.max_shard_studies)
    return planned.assign(split=splits.astype(str), shard=shards.astype(str))
