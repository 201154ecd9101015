"""What the UI shows under Artifacts of a run: results, ledger, links to MLflow.

All of it is read from the files of the training's folder; numbers and pseudonyms, no patient.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from mg3d import paths
from mg3d.ledger import read_summaries

RESULTS = "results.md"  # of `mg3d table`


def publish(run: Path, prepared: Path = paths.PREPARED) -> None:
    """Attach to the current flow run what there is of a training and its evaluation.

    Keys: ``results`` (Markdown), ``ledger`` (a table: data stages, then downstream cells),
    ``mlflow`` (Markdown: a link for each MLflow run).
    """
    if (run / RESULTS).exists():
        table = (run / RESULTS).read_text()
        create_markdown_artifact(
            f"# Results of {run.name}\n\n{table}", "results", "Downstream tasks beside their nulls"
        )
    rows = [_row(summary) for summary in _summaries(run, prepared)]
    if rows:
        create_table_artifact(rows, "ledger", "Every input: used, or left out with a reason")
    ids = sorted(run.glob(f"**/{paths.MLFLOW_RUN_ID}"))
    if ids:
        links = "\n".join(f"- {_link(file, run)}" for file in ids)
        create_markdown_artifact(
            f"# MLflow runs\n\n{links}\n", "mlflow", "Params, metrics, figures"
        )


def _summaries(run: Path, prepared: Path) -> Iterable[dict[str, Any]]:
    if any(prepared.rglob(paths.LEDGER_SUMMARY)):  # imported weights may come without
        yield from read_summaries(prepared)
    for file in sorted((run / paths.EVALUATE).glob(f"*/*/{paths.RESULT}")):
        cell = file.parent.relative_to(run / paths.EVALUATE).as_posix()
        yield {**json.loads(file.read_text())["ledger"], "stage": cell}


def _row(summary: dict[str, Any]) -> dict[str, Any]:
    reasons = [f"{reason} {count}" for reason, count in summary["reasons"].items()]
    return {
        "stage": summary["stage"],
        "unit": summary["unit"],
        "in": summary["inputs"],
        "used": summary["used"],
        "left out": summary["quarantined"],
        "reasons": ", ".join(reasons),
    }


def _link(id_file: Path, run: Path) -> str:
    """``MG3D_MLFLOW_UI`` is MLflow's address in a browser, where that is not the worker's."""
    run_id = id_file.read_text().strip()
    folder = id_file.parent.relative_to(run.parent).as_posix()
    address = os.environ.get("MG3D_MLFLOW_UI") or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address.startswith("http"):
        return f"{folder}: `{run_id}` (`make up` shows it)"
    return f"[{folder}]({address.rstrip('/')}/#/runs/{run_id})"
