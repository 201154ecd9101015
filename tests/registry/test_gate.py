"""The gate, on results worked by hand."""

import pytest

from mg3d.registry import gate


def result(value: float | None = 0.8, low: float = 0.7, **changes: object) -> dict:
    return {
        "task": "t", "version": "1", "mode": "frozen", "seed": 0, "fold": None, "test_sha256": "a",
        "headline": {
            "name": "auroc", "value": value, "interval": [low, 0.9], "null": {"prevalence": 0.5},
        },
        "ledger": {"inputs": 3, "used": 2, "quarantined": 1, "reasons": {"unreadable": 1}},
    } | changes  # fmt: skip


def test_the_interval_must_exclude_every_null() -> None:
    assert gate.beats_nulls(result()) == []
    (line,) = gate.beats_nulls(result(low=0.5))
    assert "does not exclude the null prevalence at 0.5000" in line
    (line,) = gate.beats_nulls(result(value=None) | {"unavailable": {"auroc": "one class only"}})
    assert "one class only" in line
    headline = {"name": "auroc", "value": 0.8, "interval": [0.7, 0.9], "null": {"prevalence": None}}
    (line,) = gate.beats_nulls(result(headline=headline))
    assert "unavailable" in line
    assert gate.beats_nulls(result(headline=headline | {"null": {}})) != []


def test_the_champion_is_beaten_on_the_same_test_split_or_the_difference_is_said() -> None:
    assert gate.beats_champion(result(0.81), result(0.8)) == []
    (line,) = gate.beats_champion(result(0.75), result(0.8))
    assert line.endswith("0.7500 does not beat the champion's 0.8000, 0.0500 short")
    assert gate.beats_champion(result(0.8), result(0.8)) != []
    (line,) = gate.beats_champion(result(0.9), result(0.8, test_sha256="b"))
    assert "another test_sha256" in line


@pytest.mark.parametrize(("used", "reasons"), [(1, {"unreadable": 1}), (2, {})])
def test_a_ledger_that_lost_something_is_seen(used: int, reasons: dict) -> None:
    assert gate.ledger_complete(result()) == []
    ledger = {"inputs": 3, "used": used, "quarantined": 1, "reasons": reasons}
    (line,) = gate.ledger_complete(result(ledger=ledger))
    assert "not complete" in line


def test_a_model_for_several_tasks_wins_more_than_it_loses() -> None:
    mine = [result(0.8), result(0.7, task="u"), result(0.9, task="v")]
    theirs = [result(0.7), result(0.8, task="u"), result(0.8, task="v")]
    assert gate.wins_more(mine, theirs) == []
    first, *lines = gate.wins_more(theirs, mine)
    assert first == "better than the champion on 1 tasks and worse on 2"
    assert len(lines) == 2
    folds = [result(0.6, fold=0), result(0.9, fold=1)]  # each is better than the same fold before
    assert gate.wins_more(folds, [result(0.5, fold=0), result(0.8, fold=1)]) == []
    assert gate.beats_nulls_somewhere(mine) == []
    assert gate.beats_nulls_somewhere([]) != []
    assert len(gate.beats_nulls_somewhere([result(low=0.4), result(low=0.3)])) == 2
