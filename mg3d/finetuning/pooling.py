"""Prediction files of several folds as those of one evaluation, to be scored together.

Each case was predicted by the model of the fold that it is tested in. Tables and JSON lines with a
``case_id`` follow one another; masks lie side by side, as links; what belongs to a fold (a
threshold) has no value where the folds differ, so no metric is made from it; counts are the first
fold's. Validation predictions and what only figures read is left out.
"""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

_CASE = "case_id"


def pool(folds: Sequence[Path], out: Path) -> None:
    """Merge prediction folders into the new folder ``out``.

    Raises ValueError if a case is predicted in two of them: they are not folds of one split.
    """
    out.mkdir(parents=True)
    for item in sorted(folds[0].iterdir()):
        same = [fold / item.name for fold in folds]
        if item.is_dir():
            _link(same, out / item.name)
        elif item.suffix == ".csv" and not item.stem.endswith("_validation"):
            _follow_in_csv(same, out / item.name)
        elif item.suffix == ".jsonl":
            lines = [line for file in same for line in file.read_text().splitlines()]
            _check_once([json.loads(line)[_CASE] for line in lines], item.name)
            (out / item.name).write_text("".join(f"{line}\n" for line in lines))
        elif item.suffix == ".json":
            shutil.copyfile(item, out / item.name)


def _link(folders: Sequence[Path], out: Path) -> None:
    files = [file for folder in folders for file in sorted(folder.iterdir())]
    _check_once([file.name for file in files], out.name)
    out.mkdir()
    for file in files:
        (out / file.name).symlink_to(file.resolve())


def _follow_in_csv(files: Sequence[Path], out: Path) -> None:
    """Values stay the text that they are."""
    tables = []
    for file in files:
        with file.open(newline="") as opened:
            reader = csv.DictReader(opened)
            tables.append((list(reader.fieldnames or ()), list(reader)))
    columns = tables[0][0]
    assert all(header == columns for header, _ in tables), f"{out.name} differs in its columns"
    if _CASE in columns:
        rows = [row for _, table in tables for row in table]
        ids = [{row[_CASE] for row in table} for _, table in tables]
        _check_once([case for of_fold in ids for case in sorted(of_fold)], out.name)
    else:
        rows = [_shared(one) for one in zip(*(table for _, table in tables), strict=True)]
    with out.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _shared(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    """A row of what the folds agree in; ``reason`` says so where they do not."""
    shared = {k: v if all(row[k] == v for row in rows) else "" for k, v in rows[0].items()}
    if "reason" in shared and shared != rows[0]:
        shared["reason"] = "each fold has its own"
    return shared


def _check_once(names: Sequence[str], where: str) -> None:
    if len(set(names)) < len(names):
        twice = sorted(name for name in set(names) if names.count(name) > 1)[0]
        raise ValueError(
            f"{twice} is in {where} of two folds: their test sets overlap; evaluate all folds "
            "with one split"
        )
