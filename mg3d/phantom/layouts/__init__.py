"""One file per on-disk layout. Each offers the same three functions:

``count(params)``                   how many cases it writes,
``write_case(root, params, index)`` writes the files of one case, returns rows for its tables,
``write_tables(root, params, rows)`` writes the tables from the rows of all cases, in index order.

A case depends on the seed and its index only, so cases may be written by any process in any order.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mg3d.params import WriteCohort

Row = dict[str, str]


class Layout(Protocol):
    """What a layout's module looks like."""

    def count(self, params: WriteCohort) -> int: ...

    def write_case(self, root: Path, params: WriteCohort, index: int) -> list[Row]: ...

    def write_tables(self, root: Path, params: WriteCohort, rows: Sequence[Row]) -> None: ...
