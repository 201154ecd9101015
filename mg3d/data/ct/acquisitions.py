"""Positions that occur twice in a series: copies of a slice, or acquisitions of their own.

A series without a repeated position is one acquisition, whatever its AcquisitionNumbers say (step
and shoot counts each slice). Otherwise, in this order: identical copies of a slice are dropped; the
AcquisitionNumber divides the rest if no part repeats a position; so does the InstanceNumber, if
each position occurs equally often. What still repeats is contradictory, and `arrange` refuses it.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from mg3d.data.ct.geometry import SAME_POSITION_MM
from mg3d.data.ct.header import Header
from mg3d.data.ct.pixels import read_stored
from mg3d.params import DicomVolumes

Place = tuple[int, ...]
Parts = tuple[list[list[Header]], list[Header]]  # acquisitions, dropped copies


def _place(header: Header) -> Place:
    """Position and plane of a slice, in units below which two are the same."""
    assert header.position is not None
    assert header.orientation is not None
    position = np.rint(np.divide(header.position, SAME_POSITION_MM)).astype(int).tolist()
    return (*position, *np.rint(np.multiply(header.orientation, 1e3)).astype(int).tolist())


def _repeats(headers: Sequence[Header]) -> bool:
    return len({_place(header) for header in headers}) < len(headers)


def divide(
    headers: Sequence[Header], params: DicomVolumes
) -> tuple[list[list[Header]], list[Header]]:
    """Slices of one series -> (acquisitions, dropped copies); see the module's docstring.

    Raises Refused `undecodable` if slices at one position cannot be compared.
    """
    slices = list(headers)
    if not _repeats(slices):
        return [slices], []
    slices, copies = _drop_copies(slices, params)
    if not _repeats(slices):
        return [slices], copies
    parts = defaultdict(list)
    for header in slices:
        parts[header.acquisition].append(header)
    if None not in parts and not any(map(_repeats, parts.values())):
        return [parts[number] for number in sorted(parts, key=lambda n: n or 0)], copies
    times = set(Counter(map(_place, slices)).values())
    if len(times) == 1 and all(header.number is not None for header in slices):
        (count,) = times
        ordered = sorted(slices, key=lambda header: header.number or 0)
        size = len(ordered) // count
        runs = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        if not any(map(_repeats, runs)):
            return runs, copies
    return [slices], copies


def _drop_copies(
    headers: Sequence[Header], params: DicomVolumes
) -> tuple[list[Header], list[Header]]:
    """(first of each, copies): same place, size, rescale and stored values."""
    places: dict[Place, list[Header]] = defaultdict(list)
    for header in headers:
        places[_place(header)].append(header)
    kept: list[Header] = []
    copies: list[Header] = []
    for group in places.values():
        seen: list[tuple[Header, np.ndarray]] = []
        for header in group if len(group) > 1 else ():
            _, stored = read_stored(header.path, [header.frame], params.max_series_bytes)
            values = next(stored)
            same = any(
                header.rescale == other.rescale and np.array_equal(values, known)
                for other, known in seen
            )
            (copies if same else kept).append(header)
            if not same:
                seen.append((header, values))
        if len(group) == 1:
            kept += group
    return kept, copies
