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

import numpy as np

from mg3d import paths
from mg3d.data.planning import SPLITS, assign_shards, assign_splits, hash_keys
from mg3d.data.schema import Column, check_table
from mg3d.ledger import Ledger, Reason
from mg3d.params import BuildManifest, Sources

if TYPE_CHECKING:
    import pandas as pd

SHA256, DIGEST = "[0-9a-f]{64}", "[0-9a-f]{16}"
COLUMNS = [
    Column("study_id", "text", "pseudonym; the key"),
    Column("patient_id", "text", "pseudonym; a patient is in one split"),
    Column("source", "text", "one of `sources` in params.yaml"),
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
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ValueError(f"no {path}: run `dvc repro`")
    wanted = [column if isinstance(column, str) else column.name for column in columns]
    there = set(pq.read_schema(path).names)
    table = pd.read_parquet(path, columns=[c for c in dict.fromkeys([*wanted, key]) if c in there])
    check_table(table, columns, key, f"{path.parent.name}/{path.name}")
    return table


def read_tables(
    stage: str,
    prepared: Path,
    sources: Sources,
    columns: Sequence[Column | str],
) -> "pd.DataFrame":
    """The manifests that a stage wrote for each source, one after the other, and ``source``.

    Raises ValueError like `read_table`, and if two sources share a study.
    """
    import pandas as pd

    folder = paths.stage_folder(stage, prepared)
    tables = [
        read_table(folder / name / paths.MANIFEST, columns, "study_id").assign(source=name)
        for name in sources.names
    ]
    united = pd.concat(tables, ignore_index=True)
    check_table(united, (), "study_id", f"the sources' manifests of {stage}")
    return united


def build_manifest(source: Path, out: Path, params: BuildManifest, sources: Sources) -> Ledger:
    """Join the stages under ``source`` (prepared): ``out/manifest.parquet``, ``out/splits.json``.

    The ledger counts studies and reports: a pair uses one of each. ``volume`` is relative to
    ``source``. Returns the ledger, also written to ``out``. Raises ValueError if a table is absent
    or malformed, or no pair is left for training.
    """
    of_study = ("study_id", "patient_id", "accession_id", "num_slices")
    converted = read_tables("convert_volumes", source, sources, of_study)
    of_volume = ("study_id", "volume", "volume_sha256", "contract_digest")
    packed = read_tables("pack_volumes", source, sources, of_volume)
    reports = read_table(
        paths.stage_folder("segment_sentences", source) / paths.REPORT_TABLE,
        ("report_id", "accession_id", "text_group", "num_sentences"),
        "report_id",
    )
    check_table(reports, (), "accession_id", "segment_sentences' reports")
    if packed["contract_digest"].nunique() > 1:
        raise ValueError("volumes of two contracts in pack_volumes: run `dvc repro --force`")
    studies = packed.merge(
        converted[list(of_study)], on="study_id", how="left", validate="one_to_one"
    )
    check_table(studies, ("patient_id", "accession_id"), "study_id", "pack_volumes' manifest")
    studies = studies.sort_values("study_id", ignore_index=True)

    inputs = [*reports["report_id"].tolist(), *studies["study_id"].tolist()]
    ledger = Ledger("build_manifest", "study or report", inputs)
    manifest = plan(join(studies, reports, ledger), params)
    folder = paths.stage_folder("pack_volumes", Path()).as_posix()
    manifest["volume"] = (
        f"{folder}/" + manifest["source"] + f"/{paths.VOLUMES}/" + manifest["volume"]
    )
    manifest = manifest[[column.name for column in COLUMNS]]
    check_table(manifest, COLUMNS, "study_id", "build_manifest/manifest.parquet")
    groups = manifest["text_group"].value_counts()
    ledger.count("patients", manifest["patient_id"].nunique())
    ledger.count("shards", manifest["shard"].nunique())
    ledger.count("pairs_of_a_text_that_others_have", int(groups[groups > 1].sum()))
    for name in sources.names:
        ledger.count(f"pairs_of_{name}", int((manifest["source"] == name).sum()))
    for split in SPLITS:
        ledger.count(f"pairs_in_{split}", int((manifest["split"] == split).sum()))

    splits = {name: manifest.loc[manifest["split"] == name, "study_id"].tolist() for name in SPLITS}
    with paths.atomic_write(out / paths.MANIFEST) as temporary:
        manifest.to_parquet(temporary, index=False)
    with paths.atomic_write(out / paths.SPLITS) as temporary:
        lines = {**splits, "hash": split_hash(splits)}.items()  # one line each: indent is slow
        text = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in lines)
        temporary.write_text(f"{{\n{text}\n}}\n")
    ledger.write(out)
    if not splits["train"]:
        raise ValueError(f"no pair left for training: {ledger.summary()}")
    return ledger


def join(studies: "pd.DataFrame", reports: "pd.DataFrame", ledger: Ledger) -> "pd.DataFrame":
    """Pairs of a study and a report, one per accession number; settles both in ``ledger``."""
    import pandas as pd

    best = studies["num_slices"].to_numpy()
    order = np.argsort(-best, kind="stable")  # studies come sorted by id
    # Accession numbers as integers, the studies' first.
    both = pd.concat([studies["accession_id"], reports["accession_id"]], ignore_index=True)
    codes, numbers = pd.factorize(both)
    of_study, of_report = codes[: len(studies)], codes[len(studies) :]
    report_at = np.full(len(numbers), -1)
    report_at[of_report] = np.arange(len(reports))

    chosen = np.zeros(len(studies), bool)
    chosen[order[np.unique(of_study[order], return_index=True)[1]]] = True
    patients, _ = pd.factorize(studies["patient_id"])
    num_patients = np.zeros(len(numbers), int)
    pairs = np.unique(of_study.astype(np.int64) * (len(studies) + 1) + patients)
    np.add.at(num_patients, pairs // (len(studies) + 1), 1)
    shared = num_patients > 1

    ids = np.array(studies["study_id"].tolist(), object)
    no_report, is_shared = report_at[of_study] < 0, shared[of_study]
    blank = (studies["accession_id"] == "").to_numpy(bool)
    none, mixed = Reason.STUDY_WITHOUT_REPORT, Reason.MIXED_PATIENTS
    ledger.quarantine_all(ids[no_report & ~blank], none)
    ledger.quarantine_all(ids[no_report & blank], none, "no accession number")
    ledger.quarantine_all(ids[~no_report & is_shared], mixed, "accession of two patients")
    ledger.quarantine_all(
        ids[~no_report & ~is_shared & ~chosen], Reason.NOT_CHOSEN, "accession of two studies"
    )
    paired = ~no_report & ~is_shared & chosen
    ledger.use_all(ids[paired])

    report_ids = np.array(reports["report_id"].tolist(), object)
    places = report_at[of_study[paired]]
    ledger.use_all(report_ids[places])
    ledger.quarantine_all(report_ids[shared[of_report]], mixed, "accession of two patients")
    ledger.quarantine_all(report_ids[num_patients[of_report] == 0], Reason.REPORT_WITHOUT_STUDY)
    with_report = reports.drop(columns="accession_id").iloc[places]
    return pd.concat(
        [studies[paired].reset_index(drop=True), with_report.reset_index(drop=True)], axis=1
    )


def plan(pairs: "pd.DataFrame", params: BuildManifest) -> "pd.DataFrame":
    """``pairs`` (``study_id``, ``patient_id``) with their split and shard."""
    splits = assign_splits(pairs["patient_id"], params)
    keys = hash_keys(pairs["study_id"].tolist())
    shards = assign_shards(splits, keys, params.max_shard_studies)
    return pairs.assign(split=splits.astype(str), shard=shards.astype(str))
