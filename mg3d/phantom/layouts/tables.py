"""CSV as the layouts need it."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]], quote_all: bool = False
) -> None:
    """UTF-8, ``\\n`` line ends, columns in the given order; keys beyond them are an error."""
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream,
        list(columns),
        quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL,
        lineterminator="\n",
    )
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(stream.getvalue(), encoding="utf-8", newline="")


def smaller(shape: tuple[int, int, int], numerator: int, denominator: int) -> tuple[int, int, int]:
    """The shape scaled by a fraction, rounded down."""
    depth, height, width = (max(8, size * numerator // denominator) for size in shape)
    return depth, height, width
