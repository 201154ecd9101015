"""Where a model came from, and where a patient's data went. By pseudonym, from what runs recorded.

A run records the studies it read (``studies.csv``) or the cases it split (``cases.csv``), the hash
of the checkpoint it made or used, commit and ``dvc.lock``. A model is followed to its run, to the
pre-training of its checkpoint, and to both runs' tables.
"""

import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from mg3d import paths, tracking
from mg3d.registry import lookup

TABLES = {paths.STUDIES: ("studies", "study_id"), paths.CASES: ("cases", "case_id")}
_TAGS = ("git_commit", "dvc_lock_sha256", "contract", tracking.CHECKPOINT_TAG)


def of_model(uri: str) -> dict[str, Any]:
    """A version's hashes, its runs, and the ids of every study and case, by split.

    Raises ValueError if the registry has no such model.
    """
    store = tracking.client()
    version = lookup.find_version(store, uri)
    digest = version.tags.get(tracking.CHECKPOINT_TAG, "")
    runs = [store.get_run(version.run_id)]
    runs += [
        run
        for run in lookup.runs_of_checkpoint(store, digest)
        if run.info.run_id != version.run_id and _table(store, run, paths.STUDIES)
    ]
    return {
        "model": f"models:/{version.name}/{version.version}",
        "aliases": list(version.aliases),
        **dict(sorted(version.tags.items())),
        "runs": [_of_run(store, run) for run in runs],
    }


def of_patient(patient_id: str) -> dict[str, Any]:
    """What would have to go if the patient's data had to: runs with the patient's studies or cases,
    the checkpoints and metrics they made, and every version made from those checkpoints.

    A model counts too if only its encoder saw the patient: weights keep what they learnt. Raises
    ValueError if no run recorded the patient.
    """
    store = tracking.client()
    touched, checkpoints = [], set()
    for run in _all_runs(store):
        rows = {
            table: [row for row in _table(store, run, table) if row["patient_id"] == patient_id]
            for table in TABLES
        }
        if not any(rows.values()):
            continue
        if rows[paths.STUDIES] and tracking.CHECKPOINT_TAG in run.data.tags:
            checkpoints.add(run.data.tags[tracking.CHECKPOINT_TAG])
        touched.append((run, rows))
    if not touched:
        raise ValueError(
            f"no run recorded {patient_id}: is it a pseudonym, e.g. patient-3f5a0c9d1e22, made "
            "with the same MG3D_ID_KEY?"
        )
    run_ids = {run.info.run_id for run, _ in touched}
    return {
        "patient": patient_id,
        "runs": [
            {
                "run_id": run.info.run_id,
                "name": run.info.run_name,
                **{name: _by_split(rows[t], key) for t, (name, key) in TABLES.items()},
                "checkpoint_sha256": run.data.tags.get(tracking.CHECKPOINT_TAG),
                "metrics": sorted(run.data.metrics),
            }
            for run, rows in touched
        ],
        "checkpoints": sorted(checkpoints),
        "models": [
            f"models:/{version.name}/{version.version}"
            for version in _all_versions(store)
            if version.run_id in run_ids or version.tags.get(tracking.CHECKPOINT_TAG) in checkpoints
        ],
    }


def _of_run(store: MlflowClient, run: Any) -> dict[str, Any]:
    about: dict[str, Any] = {"run_id": run.info.run_id, "name": run.info.run_name}
    about |= {tag: run.data.tags[tag] for tag in _TAGS if tag in run.data.tags}
    for table, (name, key) in TABLES.items():
        if rows := _table(store, run, table):
            about[name] = _by_split(rows, key)
    return about


def _by_split(rows: list[dict[str, str]], key: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["split"], []).append(row[key])
    return {split: sorted(ids) for split, ids in sorted(found.items())}


def _table(store: MlflowClient, run: Any, name: str) -> list[dict[str, str]]:
    """Rows of a table that a run recorded; none if it did not."""
    if run.data.tags.get(f"has_{Path(name).stem}") != "true":
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = store.download_artifacts(run.info.run_id, name, folder)
        with Path(file).open(newline="") as opened:
            return list(csv.DictReader(opened))


def _all_runs(store: MlflowClient) -> Iterator[Any]:
    experiment = store.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    token = None
    while True:
        page = store.search_runs([experiment.experiment_id], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _all_versions(store: MlflowClient) -> list[Any]:
    return [
        version
        for model in store.search_registered_models()
        for version in lookup.versions(store, model.name)
    ]
