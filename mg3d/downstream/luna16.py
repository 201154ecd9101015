"""LUNA16: is this candidate a nodule of at least 3 mm? (spec/downstream 6)

Official layout: ``subset0 ... subset9/<seriesuid>.mhd`` with ``.raw``, ``annotations.csv``,
``candidates_V2.csv`` (``candidates.csv`` is superseded) and, in ``evaluationScript/annotations/``,
the findings that count neither for nor against. Coordinates are ITK's world millimetres. The ten
subsets are disjoint by patient: 0 to 6 train, 7 validates, 8 and 9 test. With ``fold: k`` subset k
tests, the one before validates, the other eight train: all ten are the official protocol.
"""

from collections import Counter
from pathlib import Path

import pandas as pd

from mg3d.data.identity import pseudonym
from mg3d.finetuning import candidates
from mg3d.finetuning.candidates import Scan
from mg3d.finetuning.task import Case, DownstreamTask
from mg3d.ledger import Ledger, Reason

PARTS = {**dict.fromkeys(range(7), "train"), 7: "validation", 8: "test", 9: "test"}
EXCLUDED = Path("evaluationScript", "annotations", "annotations_excluded.csv")
XYZ = ["coordX", "coordY", "coordZ"]
NO_DIAMETER_MM = 10.0  # what the official evaluation takes a negative diameter for
Places = tuple[tuple[float, float, float, float], ...]


def cases(data: Path, ledger: Ledger) -> list[Case]:
    """One case per series, with its candidates, nodules and excluded findings.

    Quarantined: a series in two subsets, a candidate whose class is not 0 or 1, a series of the
    list without volume. Raises ValueError without one of the three tables, or without any subset.
    """
    files: dict[str, list[tuple[int, Path]]] = {}
    for subset in PARTS:
        for path in sorted((data / f"subset{subset}").glob("[!.]*.mhd")):
            files.setdefault(path.stem, []).append((subset, path))
    if not files:
        raise ValueError(f"no subset0 ... subset9 with .mhd files in {data}: LUNA16 ships ten")
    places = _places(data / "candidates_V2.csv", "class", "unzip candidates_V2.zip")
    nodules = _places(data / "annotations.csv", "diameter_mm", "LUNA16 ships it")
    excluded = _places(data / EXCLUDED, "diameter_mm", "unzip evaluationScript.zip")
    found: list[Case] = []
    for series in sorted(files.keys() | places.keys()):
        case_id = pseudonym("case", series)
        ledger.declare(case_id)
        if series not in files:
            ledger.quarantine(case_id, Reason.UNREADABLE, "no volume for these candidates")
        elif len(files[series]) > 1:
            ledger.quarantine(case_id, Reason.INVALID_LABEL, "in two subsets")
        elif Counter(place[3] for place in places.get(series, ())).keys() - {0.0, 1.0}:
            ledger.quarantine(case_id, Reason.INVALID_LABEL, "class of a candidate is not 0 or 1")
        else:
            [(subset, path)] = files[series]
            found.append(
                Scan(
                    case_id=case_id,
                    patient_id=pseudonym("patient", series),
                    image=path,
                    split=PARTS[subset],
                    fold=subset,
                    candidates=places.get(series, ()),
                    lesions=_sized(nodules.get(series, ())),
                    excluded=_sized(excluded.get(series, ())),
                )
            )
    return found


def _places(path: Path, column: str, remedy: str) -> dict[str, Places]:
    """(x, y, z, ``column``) in file order by series. Raises ValueError without file or column."""
    if not path.is_file():
        raise ValueError(f"no {path}: {remedy}")
    table = pd.read_csv(path, dtype={"seriesuid": str})
    if missing := {"seriesuid", *XYZ, column} - set(table.columns):
        raise ValueError(f"{path} lacks the columns {sorted(missing)}")
    rows = zip(*(table[name].astype(float) for name in (*XYZ, column)), strict=True)
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for series, row in zip(table["seriesuid"], rows, strict=True):
        found.setdefault(series, []).append(row)
    return {series: tuple(of_series) for series, of_series in found.items()}


def _sized(places: Places) -> Places:
    return tuple((x, y, z, mm if mm >= 0 else NO_DIAMETER_MM) for x, y, z, mm in places)


TASK = DownstreamTask(
    name="luna16",
    version="1",
    kind=candidates,
    cases=cases,
    headline=("cpm", "auroc"),
    citation="Setio et al., Validation, comparison, and combination of algorithms for automatic "
    "detection of pulmonary nodules in CT: The LUNA16 challenge, Medical Image Analysis 42, 2017",
    licence="CC BY 4.0",
)
