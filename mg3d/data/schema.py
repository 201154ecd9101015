"""Schemas of the tables between stages: columns with kinds, units, bounds; errors say the remedy.

A small equivalent of pandera: five kinds of mistakes, each named by table, column, value, remedy.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mg3d.text_columns import are_distinct, text_bytes

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


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
            expected = f"like {column.pattern}"
            if not _all_hexadecimal(values, column.pattern):
                wrong = ~values.str.fullmatch(column.pattern)
        elif column.at_least is not None:
            expected = f"{column.at_least} {column.unit} or more".replace("  ", " ")
            wrong = values < column.at_least
        if wrong is not None and wrong.any():
            value = values[wrong].iloc[0]
            raise ValueError(
                f"{name} has {column.name!r} {value!r} in row {table[key][wrong].iloc[0]}, not "
                f"{expected}: {remedy}"
            )
    if is_string_dtype(table[key].dtype) and are_distinct(text_column(table, key)):
        return
    repeated = table[key].duplicated()
    if repeated.any():
        raise ValueError(f"{name} has {key} {table[key][repeated].iloc[0]} twice: {remedy}")


def text_column(table: "pd.DataFrame", name: str) -> "pa.Array":
    """A column of text as one Arrow array, large_string."""
    import pyarrow as pa

    found = pa.array(table[name].array, pa.large_string())
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def _all_hexadecimal(values: "pd.Series", pattern: str) -> bool:
    """Whether ``pattern`` is so many hexadecimal digits, and all are: by bytes, as it is common."""
    digits = re.fullmatch(r"\[0-9a-f\]\{(\d+)\}", pattern)
    if digits is None:
        return False
    content, starts = text_bytes(text_column(values.to_frame("values"), "values"))
    allowed = np.zeros(256, bool)
    allowed[list(b"0123456789abcdef")] = True
    return bool((np.diff(starts) == int(digits[1])).all() and allowed[content].all())


def describe(columns: Sequence[Column]) -> str:
    """A Markdown table of the schema, for docs/datasets.md."""
    lines = ["| column | kind | unit | meaning |", "|---|---|---|---|"]
    lines += [f"| `{c.name}` | {c.kind} | {c.unit or '-'} | {c.meaning} |" for c in columns]
    return "\n".join(lines)
