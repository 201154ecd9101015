import hashlib

import numpy as np
import pytest

from mg3d.phantom.draws import Draws


def philox_4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """One block of the generator, from the paper's definition (Salmon et al., SC 2011, 3.3)."""
    ones = (1 << 64) - 1
    for _ in range(10):
        first = 0xD2E7470EE14C6C93 * counter[0]
        second = 0xCA5A826395121157 * counter[2]
        counter = [
            (second >> 64) ^ counter[1] ^ key[0],
            second & ones,
            (first >> 64) ^ counter[3] ^ key[1],
            first & ones,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) & ones, (key[1] + 0xBB67AE8584CAA73B) & ones]
    return counter


def test_words_are_philox_of_the_name() -> None:
    digest = hashlib.sha256(b"5/patient/17").digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")]
    expected = philox_4x64_10([1, 0, 0, 0], key) + philox_4x64_10([2, 0, 0, 0], key)
    assert Draws(5, "patient", 17).raw(8).tolist() == expected


def test_name_decides_and_order_does_not() -> None:
    first, second = Draws(1, "a"), Draws(1, "a")
    second.child("b").raw(5)
    assert first.raw(4).tolist() == second.raw(4).tolist()
    assert first.child("b").raw(3).tolist() == Draws(1, "a", "b").raw(3).tolist()
    assert Draws(1, "a").raw(3).tolist() != Draws(2, "a").raw(3).tolist()


def test_ranges_are_reached_and_kept() -> None:
    draws = Draws(0, "ranges")
    dice = [draws.integer(1, 6) for _ in range(600)]
    assert set(dice) == {1, 2, 3, 4, 5, 6}
    assert 3.2 < sum(dice) / 600 < 3.8
    values = [draws.uniform(-2.0, 3.0) for _ in range(300)]
    assert -2.0 <= min(values) < -1.8
    assert 2.8 < max(values) < 3.0
    assert sum(draws.chance(0.25) for _ in range(1000)) == pytest.approx(250, abs=45)


def test_shuffle_is_a_permutation() -> None:
    draws = Draws(0, "shuffle")
    items = list(range(50))
    shuffled = draws.shuffled(items)
    assert shuffled != items
    assert sorted(shuffled) == items == list(range(50))


def test_uid_is_valid() -> None:
    uid = Draws(0, "uid").uid()
    assert uid.startswith("2.25.")
    assert uid[5:].isdigit()
    assert uid[5] != "0"
    assert len(uid) <= 64


def test_bits_are_uniform() -> None:
    bits = np.unpackbits(Draws(0, "bits").raw(4096).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.005
