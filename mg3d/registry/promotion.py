"""`mg3d promote`: the alias `champion` moves to a version only if the gate holds.

MLflow sets an alias whatever it was before, so two promotions could both believe they won. What it
does enforce is that a registered model's name is unique: the name ``<name>.promoting`` is the lock,
taken and dropped around reading the champion again and moving the alias. Whoever finds another
champion than the one it was judged against is refused.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from mg3d import paths, tracking
from mg3d.finetuning.fitted import read_fitted
from mg3d.fingerprint import file_sha256
from mg3d.registry import gate, lookup
from mg3d.registry.registration import CHAMPION, TOWERS
from mg3d.training.checkpoint import contract_of

LOCK = ".promoting"
STALE_S = 300.0  # a promotion holds the lock for as long as two requests take
_HASHES = {paths.WEIGHTS: "weights_sha256", paths.FITTED: "fitted_sha256"}


def promote(name: str, version: str) -> str:
    """Make ``version`` of the registered model ``name`` its champion; returns what was beaten.

    Raises ValueError with every objection if the gate does not hold, and if another promotion was
    first.
    """
    store = tracking.client()
    found = lookup.find_version(store, f"models:/{name}/{version}")
    champion = champion_of(store, name)
    if champion == version:
        return f"{name} version {version} is the champion already"
    objections = judge(store, found, champion)
    if objections:
        lines = "".join(f"\n  - {line}" for line in objections)
        raise ValueError(f"{name} version {version} does not become champion:{lines}")
    move_champion(store, name, version, champion)
    before = f"version {champion}" if champion else "none"
    return f"{name}: champion is version {version}, before {before}"


def judge(store: MlflowClient, version: Any, champion: str | None) -> list[str]:
    """All objections against a version, beside the champion's number if there is one."""
    results = evidence(store, version)
    objections = _hashes(version, results)
    for result in results:
        objections += gate.ledger_complete(result)
    rival = store.get_model_version(version.name, champion) if champion else None
    if "task" in version.tags:
        (result,) = results
        objections += gate.beats_nulls(result)
        if rival is not None:
            objections += gate.beats_champion(result, evidence(store, rival)[0])
        return objections
    objections += gate.beats_nulls_somewhere(results)
    if rival is not None:
        objections += gate.wins_more(results, evidence(store, rival))
    return objections


def evidence(store: MlflowClient, version: Any) -> list[dict[str, Any]]:
    """The result of a task's version; of an encoder or both towers, those of its checkpoint.

    For both towers count the cells that asked both: retrieval, and prompts.
    """
    if "task" in version.tags:
        return [lookup.result_of(store, version.run_id)]
    found = lookup.results_of_checkpoint(store, version.tags[tracking.CHECKPOINT_TAG])
    if version.name == TOWERS:
        both = ("zero_shot", "prompt_tuned")
        return [r for r in found if r["kind"] == "retrieval" or r["mode"] in both]
    return found


def champion_of(store: MlflowClient, name: str) -> str | None:
    """The champion's version, or None."""
    aliases = store.get_registered_model(name).aliases
    return str(aliases[CHAMPION]) if CHAMPION in aliases else None


def move_champion(store: MlflowClient, name: str, version: str, expected: str | None) -> None:
    """Compare and set: move the alias if the champion is still ``expected``.

    Raises ValueError if it is not, or if another promotion is under way.
    """
    with _locked(store, name):
        now = champion_of(store, name)
        if now != expected:
            raise ValueError(
                f"another promotion of {name} was first: the champion is version {now} now, not "
                f"{expected}; run `mg3d promote {name} {version}` again to be judged against it"
            )
        store.set_registered_model_alias(name, CHAMPION, version)


@contextmanager
def _locked(store: MlflowClient, name: str) -> Iterator[None]:
    lock = f"{name}{LOCK}"
    _drop_stale(store, lock)
    try:
        store.create_registered_model(lock, description="a promotion is under way")
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
        raise ValueError(
            f"another promotion of {name} is under way: try again; if it died, its lock {lock} is "
            f"dropped after {STALE_S:.0f} s"
        ) from None
    try:
        yield
    finally:
        store.delete_registered_model(lock)


def _drop_stale(store: MlflowClient, lock: str) -> None:
    for model in store.search_registered_models(f"name = '{lock}'"):
        if time.time() - model.creation_timestamp / 1000 > STALE_S:
            store.delete_registered_model(lock)


def _hashes(version: Any, results: list[dict[str, Any]]) -> list[str]:
    """Objections if files, tags and results do not speak of the same weights and contract."""
    tags, name = version.tags, f"{version.name} version {version.version}"
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}"))
    objections = []
    for file in sorted(folder.rglob("*.safetensors")):
        tag = _HASHES[file.name]
        # `mg3d-encoder` says so of its checkpoint only, from which its weights were cut
        if tag in tags and file_sha256(file) != tags[tag]:
            objections.append(f"{name}: {file.name} has another SHA-256 than the tag {tag}")
        contract = (
            contract_of(file.parent).digest()
            if file.name == paths.WEIGHTS
            else read_fitted(file).contract_digest
        )
        if contract != tags["contract"]:
            objections.append(
                f"{name}: {file.name} is of contract {contract}, the version of {tags['contract']}"
            )
    for result in results:
        known = {
            tracking.CHECKPOINT_TAG: result["checkpoint_sha256"],
            "fitted_sha256": result.get("fitted_sha256"),
            "contract": result.get("contract_digest"),
            "test_sha256": result["test_sha256"],
        }
        for tag, value in known.items():
            of_task = "task" in tags or tag in (tracking.CHECKPOINT_TAG, "contract")
            if of_task and value is not None and tags.get(tag) != value:
                shown = json.dumps(str(tags.get(tag))[:16])
                objections.append(
                    f"{name}: {tag} is {shown}, and {value[:16]} in the result of {result['task']}"
                )
    return objections
