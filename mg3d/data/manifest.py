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
from mg3d.data.schema import Column, check_table, text_column
from mg3d.ledger import Ledger, Reason
from mg3d.params import BuildManifest, Sources
from mg3d.text_columns import is_plain, order_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

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
    return _hash({name: json.dumps(sorted(splits[name])) for name in SPLITS})


def _hash(lists: dict[str, str]) -> str:
    """SHA-256 of JSON lists of sorted ids, as one object with sorted keys."""
    canonical = ", ".join(f'"{name}": {lists[name]}' for name in sorted(SPLITS))
    return hashlib.sha256(f"{{{canonical}}}".encode()).hexdigest()


def json_list(texts: "pa.Array") -> str:
    """``json.dumps`` of a large_string column, without an object for each text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(texts) or not is_plain(texts):
        return json.dumps(texts.to_pylist())
    whole = pa.LargeListArray.from_arrays(pa.array([0, len(texts)], pa.int64()), texts)
    joined = pc.binary_join(whole, pa.scalar('", "', pa.large_string()))
    return f'["{joined[0]}"]'


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
    if len(tables) == 1:
        return tables[0]
    united = pd.concat(tables, ignore_index=True)
    check_table(united, (), "study_id", f"the sources' manifests of {stage}")
    return united


def build_manifest(source: Path, out: Path, params: BuildManifest, sources: Sources) -> Ledger:
    """Join the stages under ``source`` (prepared): ``out/manifest.parquet``, ``out/splits.json``.

    The ledger counts studies and reports: a pair uses one of each. ``volume`` is relative to
    ``source``. Returns the ledger, also written to ``out``. Raises ValueError if a table is absent
    or malformed, or no pair is left for training.
    """
    import pyarrow as pa

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
    if packed["study_id"].equals(converted["study_id"]):  # the usual case, and a fast one
        studies = packed.assign(**{name: converted[name] for name in of_study})
    else:
        studies = packed.merge(
            converted[list(of_study)], on="study_id", how="left", validate="one_to_one"
        )
        check_table(studies, ("patient_id", "accession_id"), "study_id", "pack_volumes' manifest")

    ledger = Ledger("build_manifest", "study or report")
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

    ids = text_column(manifest, "study_id")
    splits = {name: ids.filter(pa.array(manifest["split"] == name)) for name in SPLITS}
    with paths.atomic_write(out / paths.MANIFEST) as temporary:
        manifest.to_parquet(temporary, index=False)
    with paths.atomic_write(out / paths.SPLITS) as temporary:
        lists = {name: json_list(splits[name]) for name in SPLITS}
        text = "".join(f' "{name}": {lists[name]},\n' for name in SPLITS)
        temporary.write_text(f'{{\n{text} "hash": "{_hash(lists)}"\n}}\n')
    ledger.write(out)
    if not len(splits["train"]):
        raise ValueError(f"no pair left for training: {ledger.summary()}")
    return ledger


def join(studies: "pd.DataFrame", reports: "pd.DataFrame", ledger: Ledger) -> "pd.DataFrame":
    """Pairs of a study and a report, one per accession number, sorted by study.

    Declares all studies and reports in ``ledger`` and settles them.
    """
    import pandas as pd

    ids = text_column(studies, "study_id")
    by_id = order_of(ids)
    order = by_id[np.argsort(-studies["num_slices"].to_numpy()[by_id], kind="stable")]
    # Accession numbers as integers, the studies' first.
    both = pd.concat([studies["accession_id"], reports["accession_id"]], ignore_index=True)
    codes, numbers = pd.factorize(both)
    of_study, of_report = codes[: len(studies)], codes[len(studies) :]
    report_at = np.full(len(numbers), -1)
    report_at[of_report] = np.arange(len(reports))

    first = np.full(len(numbers), -1)
    first[of_study[order[::-1]]] = order[::-1]  # the last to be written is the best
    chosen = first[of_study] == np.arange(len(studies))
    patients, _ = pd.factorize(studies["patient_id"])
    num_studies = np.bincount(of_study, minlength=len(numbers))
    patient_of = np.full(len(numbers), -1)
    patient_of[of_study] = patients
    shared = np.zeros(len(numbers), bool)
    shared[of_study[patient_of[of_study] != patients]] = True

    blank = (studies["accession_id"] == "").to_numpy(bool)
    no_report, is_shared = report_at[of_study] < 0, shared[of_study]
    fates: list[tuple[Reason | None, str]] = [
        (None, ""),
        (Reason.STUDY_WITHOUT_REPORT, ""),
        (Reason.STUDY_WITHOUT_REPORT, "no accession number"),
        (Reason.MIXED_PATIENTS, "accession of two patients"),
        (Reason.NOT_CHOSEN, "accession of two studies"),
        (Reason.REPORT_WITHOUT_STUDY, ""),
    ]
    fate = np.select([no_report & ~blank, no_report, is_shared, ~chosen], [1, 2, 3, 4], 0)
    ledger.settle_column(ids, fates, fate)
    of_reports = np.select([shared[of_report], num_studies[of_report] == 0], [3, 5], 0)
    ledger.settle_column(text_column(reports, "report_id"), fates, of_reports)

    paired = by_id[fate[by_id] == 0]
    with_report = reports.drop(columns="accession_id")
    sides = [(studies, paired), (with_report, report_at[of_study[paired]])]
    return pd.DataFrame(
        {name: table[name].array.take(places) for table, places in sides for name in table.columns}
    )


def plan(pairs: "pd.DataFrame", params: BuildManifest) -> "pd.DataFrame":
    """``pairs`` (``study_id``, ``patient_id``) with their split and shard."""
    splits = assign_splits(pairs["patient_id"], params)
    keys = hash_keys(pairs["study_id"].tolist())
    shards = assign_shards(splits, keys, params.max_shard_studies)
    return pairs.assign(split=splits.astype(str), shard=shards.astype(str))
