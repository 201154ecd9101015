"""Schemas of the tables between stages: columns with kinds, units, bounds; errors say the remedy.

A small equivalent of pandera: five kinds of mistakes, each named by table, column, value, remedy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Column:
    """A column that must be there, without a missing value."""

    name: str
    kind: Literal["text", "whole", "any"] = "any"
    meaning: str = ""
    unit: str = ""
    choices: tuple[str, ...] = ()
    pattern: str = ""  # of the whole text
    at_least: int | None = None


def check_table(
    table: "pd.DataFrame",
    columns: Sequence[Column | str],
    key: str,
    name: str,
    remedy: str = "run `dvc repro --force`",
) -> None:
    """Raise ValueError unless ``table`` has the ``columns`` as they say, and ``key`` is unique."""
    from pandas.api.types import is_integer_dtype, is_string_dtype

    for column in (Column(c) if isinstance(c, str) else c for c in columns):
        if column.name not in table.columns:
            raise ValueError(
                f"{name} lacks the column {column.name!r}; {name} was not written by this version: "
                f"{remedy}"
            )
        values = table[column.name]
        if values.isna().any():
            raise ValueError(
                f"{name} has an empty {column.name!r}; {name} was not written by this version: "
                f"{remedy}"
            )
        right = {"text": is_string_dtype, "whole": is_integer_dtype}.get(column.kind)
        if right is not None and len(values) and not right(values.dtype):
            raise ValueError(
                f"{name} has {column.name!r} as {values.dtype}, not as {column.kind}: {remedy}"
            )
        wrong = None
        if column.choices:
            wrong, expected = ~values.isin(column.choices), f"one of {', '.join(column.choices)}"
        elif column.pattern:
            wrong, expected = ~values.str.fullmatch(column.pattern), f"like {column.pattern}"
        elif column.at_least is not None:
            expected = f"{column.at_least} {column.unit} or more".replace("  ", " ")
            wrong = values < column.at_least
        if wrong is not None and wrong.any():
            value = values[wrong].iloc[0]
            raise ValueError(
                f"{name} has {column.name!r} {value!r} in row {table[key][wrong].iloc[0]}, not "
                f"{expected}: {remedy}"
            )
    repeated = table[key].duplicated()
    if repeated.any():
        raise ValueError(f"{name} has {key} {table[key][repeated].iloc[0]} twice: {remedy}")


def describe(columns: Sequence[Column]) -> str:
    """A Markdown table of the schema, for docs/datasets.md."""
    lines = ["| column | kind | unit | meaning |", "|---|---|---|---|"]
    lines += [f"| `{c.name}` | {c.kind} | {c.unit or '-'} | {c.meaning} |" for c in columns]
    return "\n".join(lines)
