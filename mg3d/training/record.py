"""A run's metrics in its own folder, one JSON object a line, so that figures need no server."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mg3d import paths
from mg3d.training.distributed import is_main
from mg3d.training.loop import OnMetrics

NO_LOSS = ("gradient_norm", "learning_rate", "samples_per_s")


class Record:
    """Appends metrics to a JSON-lines file and passes them on; forgets what a resume repeats."""

    def __init__(self, path: Path, start_step: int, on_metrics: OnMetrics) -> None:
        self.path, self.on_metrics = path, on_metrics
        if is_main():
            kept = [line for line in read_metrics(path) if line["step"] <= start_step]
            with paths.atomic_write(path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.on_metrics(step, metrics)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file, oldest first; a line cut short by a crash ends it."""
    lines: list[dict[str, float]] = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def loss_history(
    lines: Iterable[dict[str, float]], prefix: str
) -> dict[str, dict[str, np.ndarray]]:
    """``{loss: {split: [n, 2] of (step, value)}}`` of all training losses, from metrics lines."""
    history: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith(f"{prefix}/"):
                _, split, name = key.split("/")
                history.setdefault(name, {}).setdefault(split, []).append((line["step"], value))
    shown = [name for name, curves in history.items() if "train" in curves and name not in NO_LOSS]
    return {name: {s: np.array(c) for s, c in history[name].items()} for name in shown}
