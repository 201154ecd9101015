"""`mg3d table`: the results of one run over its downstream tasks, beside their null baselines."""

import json
from pathlib import Path

from mg3d import paths

COLUMNS = ("task", "mode", "metric", "value", "95 % interval", "null baselines", "used", "left out")


def table(run: Path) -> str:
    """Markdown table of ``run/evaluate/*/*/result.json``; also written to ``run/results.md``.

    Raises ValueError if no task of the run has a result.
    """
    files = sorted(run.glob(f"{paths.EVALUATE}/*/*/{paths.RESULT}"))
    if not files:
        raise ValueError(f"no results under {run}/evaluate: run `mg3d evaluate` first")
    rows = [COLUMNS, *(_row(json.loads(file.read_text())) for file in files)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "| "
        + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    text = "\n".join(lines)
    with paths.atomic_write(run / "results.md") as temporary:
        temporary.write_text(text + "\n")
    return text


def _row(result: dict) -> tuple[str, ...]:
    headline = result["headline"]
    interval = headline["interval"]
    nulls = ", ".join(f"{name} {_number(value)}" for name, value in headline["null"].items())
    return (
        result["task"],
        result["mode"],
        headline["name"],
        _number(headline["value"]),
        f"{_number(interval[0])} to {_number(interval[1])}" if interval else "-",
        nulls,
        str(result["ledger"]["used"]),
        str(result["ledger"]["quarantined"]),
    )


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:.3f}"
