"""What a version must show before it becomes champion. Pure: results in, objections out.

All headlines are better when higher. An objection is one line that says what is short, and by how
much.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mg3d.params import Cell

Result = Mapping[str, Any]
SAME = ("task", "version", "test_sha256")  # of two results that may be compared


def beats_nulls(result: Result) -> list[str]:
    """Objections if the headline's interval does not lie above every null baseline."""
    headline, of = result["headline"], _cell(result)
    if headline["value"] is None or not headline["interval"]:
        why = result.get("unavailable", {}).get(headline["name"], "it has no interval")
        return [f"{of}: {headline['name']} is unavailable: {why}"]
    if not headline["null"]:
        return [f"{of}: no null baseline was measured for {headline['name']}"]
    low = headline["interval"][0]
    return [
        f"{of}: {headline['name']} {headline['value']:.4f} (from {low:.4f}) does not exclude the "
        f"null {null} at {value:.4f}"
        if value is not None
        else f"{of}: the null {null} of {headline['name']} is unavailable"
        for null, value in headline["null"].items()
        if value is None or low <= value
    ]


def ledger_complete(result: Result) -> list[str]:
    """Objections if an input was neither used nor quarantined with a reason."""
    ledger = result["ledger"]
    inputs, used, quarantined = (ledger[key] for key in ("inputs", "used", "quarantined"))
    if inputs == used + quarantined and quarantined == sum(ledger["reasons"].values()):
        return []
    return [
        f"{_cell(result)}: the ledger is not complete: {inputs} inputs, {used} used, {quarantined} "
        f"quarantined, {sum(ledger['reasons'].values())} with a reason"
    ]


def beats_champion(result: Result, champion: Result) -> list[str]:
    """Objections if the champion is as good on the same test split, with the difference."""
    of = _cell(result)
    differing = [key for key in SAME if result[key] != champion[key]]
    name = result["headline"]["name"]
    if name != champion["headline"]["name"]:
        differing.append("headline")
    if differing:
        return [
            f"{of}: cannot be compared with the champion, which has another "
            f"{', '.join(differing)}: evaluate both on the same data, with the same version"
        ]
    new, old = result["headline"]["value"], champion["headline"]["value"]
    if old is None or (new is not None and new > old):
        return []
    shown = "unavailable" if new is None else f"{new:.4f}"
    short = "" if new is None else f", {old - new:.4f} short"
    return [f"{of}: {name} {shown} does not beat the champion's {old:.4f}{short}"]


def beats_nulls_somewhere(results: Sequence[Result]) -> list[str]:
    """For a model that serves several tasks: objections of all, if none is above its nulls."""
    if not results:
        return ["no downstream result is recorded for this checkpoint: run `mg3d evaluate`"]
    objections = [beats_nulls(result) for result in results]
    return [] if not all(objections) else [line for lines in objections for line in lines]


def wins_more(results: Sequence[Result], champions: Sequence[Result]) -> list[str]:
    """For a model that serves several tasks: objections unless it is better on more than worse.

    Compared are cells of the same task, mode, seed and fold on the same test split.
    """
    of_champion = {_cell(result): result for result in champions}
    better = worse = 0
    lines = []
    for result in results:
        champion = of_champion.get(_cell(result))
        if champion is None or any(result[key] != champion[key] for key in SAME):
            continue
        if objections := beats_champion(result, champion):
            lines += objections
            worse += result["headline"]["value"] != champion["headline"]["value"]
        else:
            better += 1
    if better > worse:
        return []
    return [f"better than the champion on {better} tasks and worse on {worse}", *lines]


def _cell(result: Result) -> str:
    return str(Cell(*(result[key] for key in Cell._fields)))
