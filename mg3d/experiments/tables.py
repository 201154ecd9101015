"""Numbers as cells of Markdown and CSV tables. What is not there is a dash, never 0."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg3d import paths
from mg3d.metrics.bootstrap import Estimate


def number(value: float | None, signed: bool = False) -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "–"
    return f"{value:+.3g}" if signed else f"{value:.3g}"


def interval(estimate: Mapping[str, Any], signed: bool = False) -> str:
    """``value (low to high)``."""
    text = number(estimate["value"], signed)
    if estimate["interval"] is None:
        return text
    low, high = (number(end, signed) for end in estimate["interval"])
    return f"{text} ({low} to {high})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text."""
    assert all(len(row) == len(head) for row in rows)
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)


def csv_columns(
    prefix: str, values: Mapping[str, Any] | None, seeds: Sequence[int]
) -> dict[str, Any]:
    """Each seed's value, ``mean``, ``sd`` and ``n``; empty where there is none."""
    found = values or {"values": [None] * len(seeds), "mean": None, "sd": None, "n": 0}
    by_seed = {f"seed_{seed}": v for seed, v in zip(seeds, found["values"], strict=True)}
    row = {**by_seed, "mean": found["mean"], "sd": found["sd"], "n": found["n"]}
    return {f"{prefix}{name}": value for name, value in row.items()}


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same columns."""
    with paths.atomic_write(file) as temporary, temporary.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) of what is there; the values, by place."""
    there = [value for value in values if value is not None]
    return {
        "values": list(values),
        "n": len(there),
        "mean": float(np.mean(there)) if there else None,
        "sd": float(np.std(there, ddof=1)) if len(there) > 1 else None,
    }


def spread(values: Mapping[str, Any] | None, signed: bool = False) -> str:
    """``mean ± sd``, or a dash."""
    if not values or not values["n"]:
        return "–"
    mean = number(values["mean"], signed=signed)
    return mean if values["sd"] is None else f"{mean} ± {number(values['sd'])}"


def as_json(found: Estimate) -> dict[str, Any]:
    """Value, interval and reason."""
    return {
        "value": found.value,
        "interval": list(found.interval) if found.interval else None,
        "reason": found.reason,
    }
