"""What does planning cost? One table row per size: the plan from nothing, and after a 1 % change.

``python benchmarks/planning.py [SIZES...]`` (default 1000 10000 100000 1000000). Each measurement
is a process of its own (``ru_maxrss`` is its peak), reads its tables from a temporary folder, and
writes what the stage writes. Planning is everything after the texts are clean and the volumes are
packed; importing pandas is not counted:

- *dedupe*: `text_group` of every report, from its text (part of `clean_reports`)
- *plan*: `build_manifest`: tables read and checked, studies and reports joined, splits, shards,
  schema, ledger; manifest, splits and ledger written
- *1 %*: a hundredth of the studies changes: a third of them is new, a third has another volume and
  a third has gone. The dedupe reads the new texts only, for a report's group depends on nothing
  but its text; `build_manifest` runs as a whole: no cache, no state.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mg3d import paths
from mg3d.data.manifest import build_manifest
from mg3d.data.reports import text_group
from mg3d.params import BuildManifest, DicomExport, Sources

SIZES = [1_000, 10_000, 100_000, 1_000_000]
WORDS = str.split(
    "no pleural effusion nodule in the right left upper lobe measuring mm stable heart is normal "
    "size without focal consolidation mild emphysema lungs are clear airways patent lymph nodes"
)
NUM_WORDS = 90  # about 550 characters a report
ROWS = 20_000
SOURCE = "dicom_export"
SOURCES = Sources(dicom_export=DicomExport())
TABLES = [
    f"convert_volumes/{SOURCE}/{paths.MANIFEST}",
    f"pack_volumes/{SOURCE}/{paths.MANIFEST}",
    f"segment_sentences/{paths.REPORT_TABLE}",
]


def ids(kind: str, numbers: np.ndarray) -> list[str]:
    return [f"{kind}-{number * 0x9E3779B97F4A7C15 % 2**48:012x}" for number in numbers.tolist()]


def write_tables(root: Path, num: int, first: int = 0) -> None:
    """``num`` studies of half as many patients; 2 % have no report, 10 % share its text."""
    numbers = np.arange(first, first + num)
    accessions = ids("accession", numbers)
    study_ids = ids("study", numbers)
    converted = pd.DataFrame({"study_id": study_ids, "patient_id": ids("patient", numbers // 2)})
    converted["accession_id"], converted["num_slices"] = accessions, 300
    packed = pd.DataFrame({"study_id": study_ids, "volume": [f"{name}.npy" for name in study_ids]})
    digits = np.random.default_rng(first).bytes(32 * num).hex()
    packed["volume_sha256"] = [digits[64 * i : 64 * i + 64] for i in range(num)]
    packed["contract_digest"] = "c" * 16
    has_report = numbers % 50 != 0
    report_ids = pd.Series(ids("report", numbers))[has_report]
    reports = pd.DataFrame({"report_id": report_ids})
    reports["accession_id"] = pd.Series(accessions)[has_report]
    reports["num_sentences"], reports["num_dropped"] = 12, 0
    for name, table in zip(TABLES, (converted, packed, reports), strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(root / name, index=False)
    with pq.ParquetWriter(root / "texts.parquet", pa.schema([("text", "string")])) as writer:
        for start in range(0, len(reports), ROWS):
            num_rows = min(ROWS, len(reports) - start)
            generator = np.random.default_rng(first + start)
            places = generator.integers(0, len(WORDS), (num_rows, NUM_WORDS))
            places[::10] = 0
            texts = [" ".join(row) for row in np.array(WORDS)[places].tolist()]
            writer.write_table(pa.table({"text": texts}))


def dedupe(texts: Path) -> list[str]:
    """Groups of the texts, read in batches: a million reports do not fit in the memory at once."""
    batches = pq.ParquetFile(texts).iter_batches(ROWS)
    return [text_group(t, "") for batch in batches for t in batch.column("text").to_pylist()]


def measured(step: str, root: Path) -> None:
    """Run a step in this process; print seconds, CPU seconds and peak memory."""
    start, cpu = time.perf_counter(), time.process_time()
    if step == "dedupe":
        pd.DataFrame({"text_group": dedupe(root / "texts.parquet")}).to_parquet(
            root / "groups.parquet"
        )
    else:
        build_manifest(root, root / "build_manifest", BuildManifest(), SOURCES)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps([time.perf_counter() - start, time.process_time() - cpu, peak]))


def run(step: str, root: Path) -> tuple[float, float, float]:
    command = [sys.executable, __file__, step, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, cpu, peak


def add_groups(root: Path, groups: pd.Series) -> None:
    table = root / "segment_sentences" / paths.REPORT_TABLE
    pd.read_parquet(table).assign(text_group=groups.to_numpy()).to_parquet(table, index=False)


def change(root: Path, more: Path, num: int) -> None:
    """Append the studies of ``more``; the first ``num`` vanish, the next have another volume."""
    for place, name in enumerate(TABLES):
        table, new = (pd.read_parquet(folder / name) for folder in (root, more))
        table = table.iloc[num:].reset_index(drop=True)
        if place == 1:
            table.loc[: num - 1, "volume_sha256"] = "0" * 64
        pd.concat([table, new]).to_parquet(root / name, index=False)


def main(sizes: list[int]) -> None:
    print("| studies | dedupe s | plan s | CPU s, both | peak GB | after 1 %: s | CPU s |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            root, more = Path(folder) / "all", Path(folder) / "more"
            num_new = max(1, size // 300)
            for where, num, first in ((root, size, 0), (more, num_new, size)):
                write_tables(where, num, first)
            grouped = run("dedupe", root)
            add_groups(root, pd.read_parquet(root / "groups.parquet")["text_group"])
            planned = run("plan", root)
            regrouped = run("dedupe", more)
            add_groups(more, pd.read_parquet(more / "groups.parquet")["text_group"])
            change(root, more, num_new)
            replanned = run("plan", root)
        first, again = (grouped, planned), (regrouped, replanned)
        print(
            f"| {size:,} | {grouped[0]:.2f} | {planned[0]:.2f} | {sum(m[1] for m in first):.2f} "
            f"| {max(m[2] for m in first):.2f} | {sum(m[0] for m in again):.2f} "
            f"| {sum(m[1] for m in again):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in ("dedupe", "plan"):
        measured(sys.argv[1], Path(sys.argv[2]))
    else:
        main([int(size) for size in sys.argv[1:]] or SIZES)
