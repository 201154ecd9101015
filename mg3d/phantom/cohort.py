"""VERB write_cohort: lay out the embedded cohort under ``data/``.

Byte-identical on any machine and with any number of workers; the tests hold a golden hash. The
folder appears whole or not at all: everything is written to a sibling folder, which is renamed.
"""

import hashlib
import json
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path

from mg3d.parallel import parallel_map
from mg3d.params import WriteCohort
from mg3d.paths import DOWNSTREAM
from mg3d.phantom.encoders import write_json
from mg3d.phantom.layouts import (
    Layout,
    Row,
    acdc,
    cc_ccii,
    clutter,
    covid19_20,
    ct_rate,
    ct_rate_diagnosis,
    ct_rate_retrieval,
    ctrg_chest,
    ctrg_report,
    luna16,
    msd_lung,
    pacs,
    stoic2021,
)

MARKER = "cohort.json"
SOURCES = (ct_rate.NAME, ctrg_chest.NAME)  # beside the export
TASKS = (
    stoic2021.NAME,
    covid19_20.NAME,
    ct_rate_retrieval.NAME,
    ctrg_report.NAME,
    msd_lung.NAME,
    acdc.NAME,
    cc_ccii.NAME,
    luna16.NAME,
    ct_rate_diagnosis.NAME,
)
LAYOUTS: dict[str, Layout] = {
    "pacs": pacs,
    "clutter": clutter,
    ct_rate.NAME: ct_rate,
    ctrg_chest.NAME: ctrg_chest,
    stoic2021.NAME: stoic2021,
    covid19_20.NAME: covid19_20,
    ct_rate_retrieval.NAME: ct_rate_retrieval,
    ctrg_report.NAME: ctrg_report,
    msd_lung.NAME: msd_lung,
    acdc.NAME: acdc,
    cc_ccii.NAME: cc_ccii,
    luna16.NAME: luna16,
    ct_rate_diagnosis.NAME: ct_rate_diagnosis,
}
Job = tuple[str, int]


def write_cohort(out: Path, params: WriteCohort) -> None:
    """Write the sources, ``downstream/<task>/`` and the marker under ``out``.

    A cohort written earlier is replaced. Raises ValueError if ``out`` holds anything else.
    """
    _refuse_foreign(out)
    partial_out = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    partial_out.mkdir(parents=True)
    jobs = [
        (name, index) for name, layout in LAYOUTS.items() for index in range(layout.count(params))
    ]
    rows: dict[str, list[Row]] = defaultdict(list)
    work = partial(_write_case, partial_out, params)
    for (name, _), written in zip(
        jobs, parallel_map(work, jobs, params.num_workers, "write_cohort: cases"), strict=True
    ):
        rows[name] += written
    rows["pacs"] += rows.pop("clutter")
    for name in rows:
        LAYOUTS[name].write_tables(_root(partial_out, name), params, rows[name])
    settings = params.model_dump(mode="json", exclude={"num_workers"})
    marker = {"made_by": "mg3d write_cohort", **settings, "files": digest(partial_out, "names")}
    write_json(partial_out / MARKER, marker)
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial_out.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def digest(folder: Path, of: str = "contents") -> str:
    """SHA-256 over the sorted relative paths below ``folder`` and each file's size ("names") or
    SHA-256 ("contents"); the marker itself is left out."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != MARKER:
            seen = (
                str(path.stat().st_size)
                if of == "names"
                else hashlib.sha256(path.read_bytes()).hexdigest()
            )
            total.update(f"{name}\0{seen}\n".encode())
    return total.hexdigest()


def _refuse_foreign(out: Path) -> None:
    """Only a folder that we wrote, or an empty one, may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file: name a folder, or move it away")
    if not any(out.iterdir()):
        out.rmdir()
        return
    marker = out / MARKER
    remedy = f"move {out} away (or name another --out) before `mg3d write_cohort`"
    if not marker.is_file():
        raise ValueError(
            f"{out} holds data that write_cohort did not write (no {MARKER}): {remedy}"
        )
    if json.loads(marker.read_text()).get("files") != digest(out, "names"):
        raise ValueError(f"{out} holds the cohort with files added, removed or changed: {remedy}")


def _root(out: Path, name: str) -> Path:
    if name in SOURCES:
        return out / name
    return out / DOWNSTREAM.name / name if name in TASKS else out


def _write_case(out: Path, params: WriteCohort, job: Job) -> list[Row]:
    name, index = job
    return LAYOUTS[name].write_case(_root(out, name), params, index)
