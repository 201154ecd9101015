"""`mg3d table`: the results of one run, downstream task x mode over seeds, beside their nulls.

Several seeds become one row: the mean on the same test cases, its interval by patient, the
deviation over seeds. The folds of a cross-validation become one row, too: their predictions are
pooled, the interval is over all their patients (`mg3d.score.samples_of_folds`). A pre-trained mode
is tested against ``scratch`` of the same task, paired on the patients: for ``finetune`` that is the
same procedure without pre-training. For modes that leave the encoder as it is, the same procedure
is the null ``random_encoder`` of the cell itself, tested likewise. Markdown, CSV and one page that
needs no network, all beside the results.
"""

import base64
import csv
import html
import io
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg3d import paths
from mg3d.downstream import DOWNSTREAM
from mg3d.figures.forest import Line, forest
from mg3d.finetuning.task import Scores
from mg3d.metrics.bootstrap import Difference, Estimate, mean_of, paired_difference
from mg3d.score import params_of, results, samples_of_folds

MARKDOWN, CSV, PAGE = "results.md", "results.csv", "results.html"
SEED = 0
BASELINE = "scratch"
RANDOM = "random_encoder"
TRAINED = ("scratch", "finetune")  # modes whose encoder learns: RANDOM, which does not, is no peer
COLUMNS = (
    "task",
    "mode",
    "seeds",
    "metric",
    "value",
    "95 % interval",
    "SD of seeds",
    "null baselines",
    "minus scratch",
    "p",
    "minus random encoder",
    "p of it",
    "used",
    "left out",
    "folds",
)
CSV_COLUMNS = (
    *("task", "mode", "metric", "value", "low", "high", "reason", "spread", "seeds", "nulls"),
    *("difference", "difference_low", "difference_high", "p_value"),
    *("random_difference", "random_difference_low", "random_difference_high", "random_p_value"),
    *("used", "left_out", "test_openings", "folds"),
)


@dataclass(frozen=True)
class Row:
    """One task in one mode over its seeds and folds; ``folders`` are those of its cells."""

    task: str
    mode: str
    metric: str
    of_seed: Mapping[int, float | None]
    estimate: Estimate
    spread: float | None
    nulls: Mapping[str, float | None]
    against_scratch: Difference | None
    against_random: Difference | None
    used: int
    left_out: int
    test_openings: int
    folders: tuple[Path, ...]
    folds: tuple[int, ...] = ()

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of `COLUMNS`."""
        null = "random_encoder (a frozen probe)" if self.mode in TRAINED else RANDOM
        return (
            self.task,
            self.mode,
            str(len(self.of_seed)),
            self.metric,
            _number(self.estimate.value),
            _interval(self.estimate.interval),
            _number(self.spread, "-"),
            ", ".join(
                f"{null if name == RANDOM else name} {_number(value)}"
                for name, value in self.nulls.items()
            ),
            *_difference(self.against_scratch),
            *_difference(self.against_random),
            str(self.used),
            str(self.left_out),
            str(len(self.folds) or "-"),
        )


def table(run: Path) -> str:
    """Markdown of the results under ``run``; writes ``results.md``, ``.csv`` and ``.html`` there.

    Raises ValueError if no task of the run has a result.
    """
    found = rows(run)
    text = _markdown(found)
    for name, content in ((MARKDOWN, text + "\n"), (CSV, _csv(found)), (PAGE, _page(run, found))):
        with paths.atomic_write(run / name) as temporary:
            temporary.write_text(content)
    return text


def values(run: Path) -> dict[str, float]:
    """The table's values, as it was last written: ``acdc/finetune/dice``; without those of null.

    A cross-validation's mode is ``finetune-crossed``.
    """
    found = {}
    for row in csv.DictReader((run / CSV).read_text().splitlines()):
        if row["value"]:
            mode = row["mode"] + ("-crossed" if row["folds"] else "")
            found[f"{row['task']}/{mode}/{row['metric']}"] = float(row["value"])
    return found


def rows(run: Path) -> list[Row]:
    """One per task and mode, by name, ``scratch`` first; a cross-validation has a row of its own.

    Raises ValueError without results.
    """
    cells: dict[tuple[str, str, bool], dict[Path, dict[str, Any]]] = defaultdict(dict)
    for folder, result in results(run).items():
        crossed = result.get("fold") is not None
        cells[result["task"], result["mode"], crossed][folder] = result
    order = sorted(cells, key=lambda key: (key[0], key[1] != BASELINE, *key[1:]))
    compared = {(task, crossed) for task, mode, crossed in order if mode == BASELINE}
    means: dict[tuple[str, str, bool], Estimate] = {}
    metrics: dict[tuple[str, bool], str] = {}  # one for all modes of a task: the baseline's
    found = []
    for task, mode, crossed in order:
        of_cell = cells[task, mode, crossed]
        of_seed: dict[int, dict[Path, dict[str, Any]]] = defaultdict(dict)
        for folder, result in of_cell.items():
            of_seed[result["seed"]][folder] = result
        first, last = next(iter(of_cell.values())), list(of_cell.values())[-1]
        metric = first["headline"]["name"]
        has_peer = mode not in TRAINED and RANDOM in first["nulls"]
        scored: dict[int, Scores] = {}
        if (task, crossed) in compared or len(of_cell) > 1 or has_peer:
            scored = {seed: samples_of_folds(folds) for seed, folds in of_seed.items()}
        if crossed and scored:  # what a fold is too small for, all of them may have
            metric = _first_available(task, list(scored.values()))
        if (task, crossed) in compared:
            metric = metrics.setdefault((task, crossed), metric)
        estimate = _recorded(first, metric)
        values = {r["seed"]: _recorded(r, metric).value for r in of_cell.values()}
        nulls = [_recorded_nulls(result, metric) for result in of_cell.values()]
        num_resamples = params_of(first).num_bootstrap
        untrained = None
        if scored:
            seeds = [one.metrics[metric] for one in scored.values()]
            mean = mean_of(seeds, num_resamples=num_resamples, seed=SEED)
            means[task, mode, crossed] = mean
            if len(of_cell) > 1:
                estimate = mean
            if crossed:
                values = {seed: one.metrics[metric].value for seed, one in scored.items()}
                nulls = [
                    {name: of[metric].value for name, of in one.nulls.items() if metric in of}
                    for one in scored.values()
                ]
            if has_peer and all(metric in one.nulls[RANDOM] for one in scored.values()):
                of_random = mean_of(  # its own interval is not wanted
                    [one.nulls[RANDOM][metric] for one in scored.values()],
                    num_resamples=1,
                    seed=SEED,
                )
                untrained = paired_difference(
                    of_random, mean, num_resamples=num_resamples, seed=SEED
                )
        difference = None
        if (task, crossed) in compared and mode != BASELINE:
            difference = paired_difference(
                means[task, BASELINE, crossed],
                means[task, mode, crossed],
                num_resamples=num_resamples,
                seed=SEED,
            )
        known = [value for value in values.values() if value is not None]
        found.append(
            Row(
                task=task,
                mode=mode,
                metric=metric,
                of_seed=dict(sorted(values.items())),
                estimate=estimate,
                spread=statistics.stdev(known) if len(known) > 1 else None,
                nulls=_mean_nulls(nulls),
                against_scratch=difference,
                against_random=untrained,
                used=first["ledger"]["used"],
                left_out=first["ledger"]["quarantined"],
                test_openings=last.get("test_openings", 0),
                folders=tuple(of_cell),
                folds=tuple(sorted({r["fold"] for r in of_cell.values()})) if crossed else (),
            )
        )
    return found


def _first_available(task: str, of_seeds: Sequence[Scores]) -> str:
    """The first of the task's headline metrics that has a value for each seed, else the first."""
    preferred = DOWNSTREAM[task].headline
    known = [m for m in preferred if all(s.metrics[m].value is not None for s in of_seeds)]
    return (known or list(preferred))[0]


def _recorded(result: Mapping[str, Any], metric: str) -> Estimate:
    """The estimate as ``result.json`` has it."""
    recorded = result["metrics"][metric]
    interval = recorded["interval"]
    return Estimate(
        recorded["value"],
        (interval[0], interval[1]) if interval else None,
        recorded.get("reason"),
    )


def _recorded_nulls(result: Mapping[str, Any], metric: str) -> dict[str, float | None]:
    return {name: of[metric]["value"] for name, of in result["nulls"].items() if metric in of}


def _mean_nulls(of_seeds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean over seeds of each null baseline; None where one of them has no value."""
    nulls: dict[str, float | None] = {}
    for name in of_seeds[0]:
        values = [nulls_of_seed[name] for nulls_of_seed in of_seeds]
        known = [value for value in values if value is not None]
        nulls[name] = statistics.fmean(known) if len(known) == len(values) else None
    return nulls


def _markdown(found: Sequence[Row]) -> str:
    lines = [COLUMNS, *(row.cells() for row in found)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = [
        "| "
        + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def _csv(found: Sequence[Row]) -> str:
    """Numbers in full, an interval in two columns; nulls and seeds as ``name=value`` lists."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in found:
        differences = [
            row.against_scratch or Difference(None),
            row.against_random or Difference(None),
        ]
        writer.writerow(
            [
                *(row.task, row.mode, row.metric, row.estimate.value),
                *(row.estimate.interval or (None, None)),
                *(row.estimate.reason, row.spread, _list(row.of_seed), _list(row.nulls)),
                *(
                    number
                    for one in differences
                    for number in (one.value, *(one.interval or (None, None)), one.p_value)
                ),
                *(row.used, row.left_out, row.test_openings, len(row.folds) or None),
            ]
        )
    return out.getvalue()


def _page(run: Path, found: Sequence[Row]) -> str:
    """One HTML page with everything inside it: no script, no font, no picture from elsewhere."""
    lines = [
        Line(_name(row), row.estimate.value, row.estimate.interval, row.nulls) for row in found
    ]
    drawn = io.BytesIO()
    forest(lines).savefig(drawn, format="png", dpi=110)
    head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells()) + "</tr>\n"
        for row in found
    )
    title = f"Downstream results of {html.escape(run.name)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        "<style>body{font:14px sans-serif;margin:2em;max-width:90em}"
        "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.3em .6em;"
        "text-align:left}img{max-width:100%}</style>\n"
        f"<h1>{title}</h1>\n<table><tr>{head}</tr>\n{body}</table>\n"
        "<p>Intervals: bootstrap by patient. Minus scratch: paired on the same patients, interval "
        "and two-sided p value; for finetune the same procedure without pre-training. Minus random "
        "encoder: likewise, for modes that leave the encoder as it is. Several seeds: "
        "mean and standard deviation; the interval is that of the mean. Folds: their predictions "
        "pooled, or, on one test set, the mean over their models.</p>\n"
        f"{_picture(drawn.getvalue(), 'Forest plot of the table')}\n"
        + "".join(_details(folder) for row in found for folder in row.folders)
        + "</html>\n"
    )


def _name(row: Row) -> str:
    folds = f", {len(row.folds)} folds" if row.folds else ""
    return f"{row.task}, {row.mode}{folds}"


def _details(folder: Path) -> str:
    """What a reader of one cell's numbers must know, and its figures."""
    result = json.loads((folder / paths.RESULT).read_text())
    facts = {
        "cases": result.get("cases"),
        "left out": result["ledger"].get("reasons"),
        "chosen on validation": result.get("selection"),
        "selections that opened this test split": result.get("test_openings"),
        "encoder coverage": result.get("encoder_coverage"),
        "unavailable": result.get("unavailable"),
    }
    listed = "".join(
        f"<li>{html.escape(name)}: {html.escape(json.dumps(fact))}</li>"
        for name, fact in facts.items()
        if fact
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in result.get("notes", ()))
    pictures = "".join(
        _picture(file.read_bytes(), file.stem)
        for file in sorted((folder / paths.FIGURES).glob("*.png"))
    )
    name = html.escape(f"{result['task']}/{folder.name}")
    return f"<details><summary>{name}</summary><ul>{listed}{notes}</ul>{pictures}</details>\n"


def _picture(png: bytes, name: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'


def _list(values: Mapping[Any, float | None]) -> str:
    return ";".join(f"{name}={'' if value is None else value}" for name, value in values.items())


def _difference(difference: Difference | None) -> tuple[str, str]:
    """With its interval, and its p value."""
    if difference is None or difference.value is None:
        return "-", "-"
    text = f"{difference.value:+.3f} ({_interval(difference.interval)})"
    return text, _number(difference.p_value, "-")


def _interval(interval: tuple[float, float] | None) -> str:
    return f"{_number(interval[0])} to {_number(interval[1])}" if interval else "-"


def _number(value: float | None, none: str = "null") -> str:
    return none if value is None else f"{value:.3f}"
