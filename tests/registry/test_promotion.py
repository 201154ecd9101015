"""`champion` moves if the gate holds, and a race has one winner."""

import multiprocessing
from typing import Any

import pytest

from mg3d import tracking
from mg3d.registry import lookup
from mg3d.registry.promotion import LOCK, champion_of, move_champion, promote
from mg3d.registry.registration import register

from .conftest import World

NAME = "mg3d-stoic2021"
LOST = {"inputs": 5, "used": 3, "quarantined": 1, "reasons": {"unreadable": 1}}


def version_of(world: World, seed: int, **result: Any) -> str:
    """The version that a cell of this seed becomes."""
    world.evaluate("stoic2021", seed, **result)
    register(world.run, world.params)
    found = [v for v in lookup.versions(tracking.client(), NAME) if v.tags["seed"] == str(seed)]
    return str(found[0].version)


def test_champion_moves_only_for_a_better_one(world: World) -> None:
    first = version_of(world, 0, value=0.8, low=0.7)
    assert promote(NAME, first).endswith(f"champion is version {first}, before none")
    weak = version_of(world, 1, value=0.9, low=0.55)
    with pytest.raises(ValueError, match=r"does not exclude the null random_encoder at 0.6000"):
        promote(NAME, weak)
    worse = version_of(world, 2, value=0.78, low=0.7)
    with pytest.raises(ValueError, match=r"does not beat the champion's 0.8000, 0.0200 short"):
        promote(NAME, worse)
    leaky = version_of(world, 3, value=0.9, low=0.8, ledger=LOST)
    with pytest.raises(ValueError, match="ledger is not complete: 5 inputs, 3 used"):
        promote(NAME, leaky)
    elsewhere = version_of(world, 4, value=0.9, low=0.8, test_sha256="b" * 64)
    with pytest.raises(ValueError, match="another test_sha256"):
        promote(NAME, elsewhere)
    assert champion_of(tracking.client(), NAME) == first
    better = version_of(world, 5, value=0.85, low=0.7)
    assert f"before version {first}" in promote(NAME, better)
    assert champion_of(tracking.client(), NAME) == better
    with pytest.raises(ValueError, match="stoic2021"):
        promote("mg3d-nothing", "1")


def test_other_bytes_than_the_tags_say_are_refused(world: World) -> None:
    version = version_of(world, 6, value=0.95, low=0.9)
    store = tracking.client()
    digest = store.get_model_version(NAME, version).tags["fitted_sha256"]
    store.set_model_version_tag(NAME, version, "fitted_sha256", "0" * 64)
    with pytest.raises(ValueError, match=r"fitted.safetensors has another SHA-256"):
        promote(NAME, version)
    store.set_model_version_tag(NAME, version, "fitted_sha256", digest)
    store.set_model_version_tag(NAME, version, "contract", "f" * 16)
    with pytest.raises(ValueError, match="is of contract"):
        promote(NAME, version)


def test_the_encoder_is_judged_by_the_tasks_of_its_checkpoint(world: World) -> None:
    world.evaluate("stoic2021", 3, value=0.9, low=0.8, ledger=LOST)
    *_, uri = register(world.run, world.params)
    name, version = uri.removeprefix("models:/").split("/")
    with pytest.raises(ValueError, match="stoic2021/frozen-seed3: the ledger is not complete"):
        promote(name, version)
    world.evaluate("stoic2021", 3, value=0.9, low=0.8)
    assert "champion is version" in promote(name, version)


def _move(barrier: Any, version: str, expected: str | None, outcome: Any) -> None:
    store = tracking.client()
    barrier.wait()
    try:
        move_champion(store, "mg3d-raced", version, expected)
        outcome.put((version, "won"))
    except ValueError as error:
        outcome.put((version, str(error)))


def test_of_two_promotions_at_once_one_wins(world: World) -> None:
    store = tracking.client()
    store.create_registered_model("mg3d-raced")
    for _ in range(2):
        store.create_model_version("mg3d-raced", "s3://nowhere/model")
    context = multiprocessing.get_context("fork")
    for expected in (None, "1"):  # the second time against a champion
        barrier, outcome = context.Barrier(2), context.Queue()
        racers = [
            context.Process(target=_move, args=(barrier, version, expected, outcome))
            for version in ("1", "2")
        ]
        for racer in racers:
            racer.start()
        found = dict(outcome.get(timeout=120) for _ in racers)
        for racer in racers:
            racer.join(30)
        winners = [version for version, text in found.items() if text == "won"]
        assert len(winners) == 1, found
        (loser,) = (text for text in found.values() if text != "won")
        assert "another promotion of mg3d-raced" in loser
        assert champion_of(store, "mg3d-raced") == winners[0]
        assert not store.search_registered_models(f"name = 'mg3d-raced{LOCK}'")
        store.set_registered_model_alias("mg3d-raced", "champion", "1")
