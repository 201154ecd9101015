"""CTRG-Chest-548K (Tang et al., 2024), official layout: a list, and folders of JPG slices.

Layout::

    chest_ctrg_jpg.json       a list of {"image_path": folder, "report": ..., "result": ...}
    <image_path>/1.jpg ...    8-bit slices from the head down, windowed, without a spacing

The list names no patients, so each study is its own. A folder has no millimetres: the volume has no
affine, and `pack_volumes` fits it into the contract's field of view.
"""

import json
import posixpath
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from mg3d.data.identity import pseudonym
from mg3d.data.slices import find_slices, read_slices
from mg3d.data.sources.study import Candidate, ReportRow, Study, Volume
from mg3d.ledger import Ledger, Reason
from mg3d.params import CtrgReports, CtrgVolumes

NAME = "ctrg_chest"
LIST = "chest_ctrg_jpg.json"


def find_studies(source: CtrgVolumes, ledger: Ledger) -> list[Study]:
    """A study per folder of slices, on the list or not. Raises ValueError if there is none."""
    root = source.path
    folders: dict[Path, list[Path]] = {}
    for folder in sorted({path.parent for path in root.rglob("*") if path.is_file()}):
        slices = find_slices(folder)
        if slices:
            folders[folder] = slices
        for path in sorted(set(folder.iterdir()) - set(slices)):
            if path.is_file() and path.suffix != ".json":
                stray = pseudonym("file", f"{NAME}/{path.relative_to(root).as_posix()}")
                ledger.declare(stray)
                ledger.quarantine(stray, Reason.STRAY_FILE, "not a slice")
    if not folders:
        raise ValueError(f"no folder of JPG slices under {root}: see docs/datasets.md")
    studies = []
    for folder, slices in folders.items():
        name = f"{NAME}/{folder.relative_to(root).as_posix()}"
        input_id = pseudonym("volume", name)
        ledger.declare(input_id)
        candidate = Candidate(
            input_id,
            pseudonym("accession", name),
            tuple(slices),
            partial(read_volume, tuple(slices), source.window_hu, source.crop_fractions),
            num_files=len(slices),
        )
        patient = pseudonym("patient", name)
        studies.append(Study(pseudonym("study", name), patient, (candidate,)))
    return studies


def read_volume(
    slices: tuple[Path, ...],
    window_hu: tuple[int, int],
    crop_fractions: tuple[float, float, float],
) -> Volume:
    """Grey 0..255 -> ``window_hu``, int16 (X, Y, Z); of each axis (z, y, x) the central fraction.

    Raises Refused.
    """
    grey = read_slices(list(slices))
    for axis, fraction in zip((2, 1, 0), crop_fractions, strict=True):
        kept = max(1, round(grey.shape[axis] * fraction))
        first = (grey.shape[axis] - kept) // 2
        grey = grey.take(range(first, first + kept), axis)
    low, high = window_hu
    table = np.rint(low + np.arange(256) / 255 * (high - low)).astype(np.int16)
    return table[grey], None


def read_reports(source: CtrgReports) -> Iterator[ReportRow | None]:
    """A row per entry of the list, None for one that cannot be read.

    Raises ValueError if the list is absent or no list.
    """
    if not source.path.is_file():
        raise ValueError(f"no {source.path}: CTRG-Chest ships it beside its folders")
    entries = json.loads(source.path.read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise ValueError(f"{source.path.name} is no list: take {LIST} of CTRG-Chest")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("image_path"), str):
            yield None
            continue
        folder = posixpath.normpath(entry["image_path"])
        parts = {"Findings": entry.get("report"), "Impression": entry.get("result")}
        texts = {title: str(part).strip() for title, part in parts.items() if part is not None}
        text = "\n\n".join(f"{title}: {part}" for title, part in texts.items() if part)
        yield ReportRow(f"{NAME}/{folder}", text, {})
