"""`mg3d predict`: a registered model asked about a study, its answer as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow

from mg3d import tracking
from mg3d.data.ct.refused import Refused
from mg3d.inference.study import read_places, read_studies
from mg3d.inference.writing import write_answer
from mg3d.registry import lookup


def predict(
    uri: str, path: Path, out: Path, candidates: Path | None, findings: Sequence[str]
) -> list[Path]:
    """Write ``out/<study id>/answer.json`` and its companions for each study at ``path``.

    Raises ValueError, with the typed reason, if the study is refused; if the model's files are of
    another contract than the registry says; if the model needs what was not given.
    """
    version = lookup.find_version(tracking.client(), uri)
    resolved = f"models:/{version.name}/{version.version}"
    model: Any = mlflow.pyfunc.load_model(resolved).unwrap_python_model()
    if not hasattr(model, "model"):
        raise ValueError(f"{uri} only embeds: use `mg3d embed`, or the model of a task")
    contract = model.contract.digest()
    if contract != version.tags.get("contract"):
        raise ValueError(
            f"{resolved} is of contract {version.tags.get('contract')} in the registry and of "
            f"{contract} in its files: register it again"
        )
    who = {
        "uri": resolved,
        "contract": contract,
        **{k: v for k, v in version.tags.items() if k.endswith("_sha256") or k == "task"},
    }
    asked = _ask_towers(model, findings) if "task" not in version.tags else model.answer
    try:
        studies = read_studies(path, model.model.admission)
        if candidates is not None:
            studies = read_places(studies, candidates)
    except Refused as refused:
        raise ValueError(f"{path} is refused: {refused.reason}: {refused.detail}") from None
    return [write_answer(out, study, asked(study), who) for study in studies]


def _ask_towers(model: Any, findings: Sequence[str]) -> Any:
    if not findings:
        raise ValueError("models:/mg3d looks for what you name: pass --finding NAME, repeatedly")
    return lambda study: model.model.findings(study, findings)
