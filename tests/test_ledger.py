"""inputs = used + quarantined(reason), whatever the order."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg3d.ledger import Ledger, Reason, read_summaries

FATES = st.none() | st.sampled_from(list(Reason))


def settle(ledger: Ledger, input_id: str, fate: Reason | None) -> None:
    if fate is None:
        ledger.use(input_id)
    else:
        ledger.quarantine(input_id, fate)


@given(st.dictionaries(st.text(max_size=4), FATES))
def test_conservation(fates: dict[str, Reason | None]) -> None:
    ledger = Ledger("convert_volumes", "series", fates)
    for input_id, fate in fates.items():
        settle(ledger, input_id, fate)
    summary = ledger.summary()
    expected = Counter(str(fate) for fate in fates.values() if fate is not None)
    assert summary["inputs"] == len(fates)
    assert summary["used"] == sum(fate is None for fate in fates.values())
    assert summary["reasons"] == expected
    assert summary["quarantined"] == sum(expected.values())


def test_a_hand_counted_ledger() -> None:
    ledger = Ledger("clean_reports", "report", ["a", "b", "c", "d"])
    ledger.use("a")
    ledger.quarantine("b", Reason.EMPTY_REPORT, "0 characters")
    ledger.quarantine("c", Reason.NO_KEY)
    ledger.quarantine("d", Reason.EMPTY_REPORT, "3 characters")
    assert ledger.summary() == {
        "stage": "clean_reports",
        "unit": "report",
        "inputs": 4,
        "used": 1,
        "quarantined": 3,
        "reasons": {"empty_report": 2, "no_key": 1},
    }


def test_an_unsettled_input_is_a_bug() -> None:
    ledger = Ledger("pack_volumes", "volume", ["a", "b"])
    ledger.use("a")
    with pytest.raises(AssertionError, match=r"pack_volumes: unsettled inputs \['b'\]"):
        ledger.summary()


def test_nothing_is_written_with_an_unsettled_input(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="unsettled"):
        Ledger("pack_volumes", "volume", ["a"]).write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("second", [None, Reason.NOT_CT])
def test_an_input_is_settled_once(second: Reason | None) -> None:
    ledger = Ledger("convert_volumes", "series", ["a"])
    ledger.use("a")
    with pytest.raises(AssertionError, match="convert_volumes: a settled twice"):
        settle(ledger, "a", second)


def test_only_declared_inputs_are_settled() -> None:
    with pytest.raises(AssertionError, match="a undeclared"):
        Ledger("convert_volumes", "series").use("a")


def test_an_input_is_declared_once() -> None:
    with pytest.raises(AssertionError, match="a declared twice"):
        Ledger("convert_volumes", "series", ["a", "a"])


def test_counts_stand_beside_the_conservation() -> None:
    ledger = Ledger("s", "series")
    assert "counts" not in ledger.summary()
    ledger.count("patients", 3)
    assert ledger.summary()["counts"] == {"patients": 3}
    with pytest.raises(AssertionError, match="patients counted twice"):
        ledger.count("patients", 3)


def test_the_files_do_not_depend_on_the_order(tmp_path: Path) -> None:
    fates = {"c": None, "a": Reason.NOT_CT, "b": Reason.TRUNCATED}
    for name, order in (("one", "abc"), ("two", "cba")):
        ledger = Ledger("convert_volumes", "series", order)
        for input_id in order:
            settle(ledger, input_id, fates[input_id])
        ledger.write(tmp_path / name)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two
    assert set(one) == {"ledger.json", "ledger.jsonl"}
    entries = [json.loads(line) for line in one["ledger.jsonl"].splitlines()]
    assert [entry["input_id"] for entry in entries] == ["a", "b", "c"]
    assert [entry["reason"] for entry in entries] == ["not_ct", "truncated", None]


def test_summaries_are_read_back(tmp_path: Path) -> None:
    for stage in ("pack_volumes", "convert_volumes"):
        ledger = Ledger(stage, "series", ["a"])
        ledger.use("a", count=30)
        ledger.write(tmp_path / stage)
    assert [summary["stage"] for summary in read_summaries(tmp_path)] == [
        "convert_volumes",
        "pack_volumes",
    ]


def test_no_ledger_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `dvc repro` first"):
        read_summaries(tmp_path)


def test_a_column_is_as_one_by_one(tmp_path: Path) -> None:
    ids = ["plain", 'quo"ted', "b", "ümlaut", "a"]
    fates = [(None, ""), (Reason.NOT_CT, "why")]
    column, single = Ledger("s", "series", ["z"]), Ledger("s", "series", ["z", *ids])
    column.settle_column(pa.array(ids), fates, np.array([0, 1, 0, 1, 1]))
    for input_id in ("plain", "b"):
        single.use(input_id)
    for input_id in ('quo"ted', "ümlaut", "a"):
        single.quarantine(input_id, *fates[1])
    with pytest.raises(AssertionError, match="s: unsettled inputs"):
        column.summary()
    for name, ledger in (("one", column), ("two", single)):
        ledger.use("z")
        ledger.write(tmp_path / name)
    assert column.summary() == single.summary()
    assert column.entries == single.entries
    written = [json.dumps(vars(entry), sort_keys=True) for entry in column.entries]
    assert (tmp_path / "one/ledger.jsonl").read_text().splitlines() == written
    for name in ("ledger.json", "ledger.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_column_with_an_id_that_is_there_already_is_not_written(tmp_path: Path) -> None:
    ledger = Ledger("s", "series", ["b"])
    ledger.use("b")
    ledger.settle_column(pa.array(["a", "b"]), [(None, "")], np.zeros(2, int))
    with pytest.raises(AssertionError, match="s: b declared twice"):
        ledger.write(tmp_path)
    assert not list(tmp_path.iterdir())
