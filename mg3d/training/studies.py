"""Which studies a training read, by pseudonym: the last link of a model's lineage."""

import json
from pathlib import Path

from mg3d import paths
from mg3d.data.manifest import read_table


def write_studies(prepared: Path, run: Path) -> Path:
    """Write ``run/studies.csv``: study_id, patient_id and split of all that the run's ledger used.

    A run without a ledger (another prepared it) counts as having read the whole manifest.
    """
    columns = ("study_id", "patient_id", "split")
    manifest = paths.stage_folder("build_manifest", prepared) / paths.MANIFEST
    table = read_table(manifest, columns, "study_id")[list(columns)]
    entries = run / paths.LEDGER_ENTRIES
    if entries.exists():
        with entries.open() as lines:
            settled = [json.loads(line) for line in lines]
        used = {entry["input_id"] for entry in settled if entry["reason"] is None}
        table = table[table["study_id"].isin(used)]
    with paths.atomic_write(run / paths.STUDIES) as temporary:
        table.sort_values("study_id").to_csv(temporary, index=False)
    return run / paths.STUDIES
