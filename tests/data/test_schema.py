"""Schema of a table: each kind of mistake is named by table, column, value and remedy."""

import pandas as pd
import pytest

from mg3d.data.manifest import COLUMNS
from mg3d.data.schema import Column, check_table, describe

SCHEMA = [
    Column("id", "text", "the key"),
    Column("split", "text", choices=("train", "test")),
    Column("digest", "text", pattern="[0-9a-f]{4}"),
    Column("num", "whole", "how many", "sentences", at_least=1),
]
GOOD = pd.DataFrame(
    {"id": ["a", "b"], "split": ["train", "test"], "digest": ["00ff", "abcd"], "num": [1, 2]}
)


def test_a_good_table_passes_and_so_does_an_empty_one() -> None:
    check_table(GOOD, SCHEMA, "id", "table")
    check_table(GOOD.iloc[:0], SCHEMA, "id", "table")
    check_table(GOOD.assign(more=1.5), SCHEMA, "id", "table")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (GOOD.drop(columns="num"), r"t/m lacks the column 'num'; .* run `dvc repro --force`"),
        (GOOD.assign(split=["train", None]), r"t/m has an empty 'split'; .* run `dvc"),
        (GOOD.assign(num=[1.5, 2.0]), r"t/m has 'num' as float64, not as whole: run `dvc"),
        (GOOD.assign(id=[1, 2]), r"t/m has 'id' as int64, not as text: run `dvc"),
        (
            GOOD.assign(split=["train", "valid"]),
            r"t/m has 'split' 'valid' in row b, not one of train, test: run `dvc",
        ),
        (GOOD.assign(digest=["00ff", "00FF"]), r"has 'digest' '00FF' in row b, not like \[0-9a-f"),
        (GOOD.assign(num=[1, 0]), r"t/m has 'num' .*0.* in row b, not 1 sentences or more: run"),
        (GOOD.assign(id="a"), r"t/m has id a twice: run `dvc repro --force`"),
    ],
)
def test_mistakes(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_table(table, SCHEMA, "id", "t/m")


def test_the_documented_schema_is_the_one_that_is_checked() -> None:
    from pathlib import Path

    documented = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    assert describe(COLUMNS) in documented
