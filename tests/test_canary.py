"""No identifier leaves the export: planted in headers, reports, names; looked for everywhere."""

import base64
import bz2
import csv
import gzip
import io
import json
import lzma
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import canary
import pandas as pd
import pydicom
import pytest
import yaml

from mg3d import paths
from mg3d.params import WriteCohort, load_params
from mg3d.phantom.cohort import write_cohort

ROOT = Path(__file__).parents[1]
VALUE = "Qxcanarü^Ötto 17"
COHORT = WriteCohort(
    seed=5,
    num_patients=10,
    num_segmentation_cases=8,
    num_labelled_cases=8,
    num_retrieval_cases=8,
    num_ct_rate_scans=0,
    num_ctrg_studies=0,
    shape_voxels=(16, 32, 32),
    num_workers=1,
)


def _zip(content: bytes) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member.txt", content)
    return file.getvalue()


def _tar(content: bytes) -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w:gz") as archive:
        member = tarfile.TarInfo("member.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _sqlite(content: bytes) -> bytes:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE runs (name TEXT, log BLOB)")
    database.execute("INSERT INTO runs VALUES ('run', ?)", (zlib.compress(content),))
    database.commit()
    return database.serialize()


def _parquet(content: bytes) -> bytes:
    file = io.BytesIO()
    column = [base64.b64encode(content).decode()]
    pd.DataFrame({"text": column}).to_parquet(file, compression="gzip")
    return file.getvalue()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda content: content,
    "base64 at 0": base64.b64encode,
    "base64 at 1": lambda content: base64.b64encode(b"?" + content),
    "base64 at 2": lambda content: base64.b64encode(b"??" + content),
    "base64 in a word": lambda content: b"xyz" + base64.urlsafe_b64encode(content),
    "base64 in lines": lambda content: base64.encodebytes(b"some words" * 9 + content),
    "gzip": gzip.compress,
    "zlib": lambda content: b"%PDF stream\n" + zlib.compress(content),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": _zip,
    "tar.gz": _tar,
    "sqlite": _sqlite,
    "parquet": _parquet,
    "gzip in base64 in zip": lambda content: _zip(base64.b64encode(gzip.compress(content))),
}
SPELLINGS: dict[str, bytes] = {
    "UTF-8": VALUE.encode(),
    "lower case": VALUE.encode().replace(b"Qxc", b"qXC"),
    "Latin-1": VALUE.encode("latin-1"),
    "UTF-16, little endian": VALUE.encode("utf-16-le"),
    "UTF-16, big endian": VALUE.encode("utf-16-be"),
    "JSON": json.dumps(VALUE).encode(),
    "hexadecimal": VALUE.encode().hex().encode(),
    "a URL": b"https://host/?q=Qxcanar%C3%BC%5E%C3%96tto%2017&page=2",
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_planted_value_is_found_however_it_is_packed(
    packing: str, spelling: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "file").write_bytes(PACKINGS[packing](b"before " + SPELLINGS[spelling] + b" after"))
    (store / "other").write_bytes(PACKINGS[packing](b"before Qxcanary Otto 17 after"))
    (find,) = {found[::2] for found in canary.search([store], {VALUE: "PatientName"})}
    assert find == (store / "file", "PatientName")
    assert VALUE not in str(find)


def test_a_value_in_a_database_with_a_write_ahead_log_is_found(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "prefect.db")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE log (message BLOB)")
    packed = zlib.compress(b"QXMRN-778899" + bytes(range(256)) * 300, 0)  # spills over pages
    database.execute("INSERT INTO log VALUES (?)", (bytes(5000) + packed,))
    database.commit()
    for checkpoint in ("", "PRAGMA wal_checkpoint(TRUNCATE)"):
        database.execute(checkpoint)
        assert canary.search([tmp_path], {"QXMRN-778899": "PatientID"})
    whole = {find.packing for find in canary.search([tmp_path], {"QXMRN-778899": "PatientID"})}
    assert ("sqlite",) in whole
    database.close()


def test_names_of_files_and_folders_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "runs/QXMRN-778899").mkdir(parents=True)
    (find,) = canary.search([tmp_path / "runs"], {"QXMRN-778899": "PatientID"})
    assert find.packing == ("file name",)


def test_a_value_across_two_blocks_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "_BLOCK_BYTES", 64)
    for shift in range(20):
        (tmp_path / "file").write_bytes(b"." * (50 + shift) + b"QXMRN-778899" + b"." * 80)
        assert canary.search([tmp_path / "file"], {"QXMRN-778899": "PatientID"})


def test_digits_within_a_number_or_a_digest_are_no_find(tmp_path: Path) -> None:
    text = "0.19450312 1194503120 a19450312f"
    (tmp_path / "file").write_text(text)
    assert canary.search([tmp_path], {"19450312": "PatientBirthDate"}) == []
    (tmp_path / "file").write_text(text + ' "19450312"')
    assert canary.search([tmp_path], {"19450312": "PatientBirthDate"})
    for order in ("utf-16-le", "utf-16-be"):  # as voxels of 16 bits may look
        (tmp_path / "file").write_bytes("!119450312053!".encode(order))
        assert canary.search([tmp_path], {"19450312": "PatientBirthDate"}) == []
        (tmp_path / "file").write_bytes("!19450312!".encode(order))
        assert canary.search([tmp_path], {"19450312": "PatientBirthDate"})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of its own with a small cohort in which canaries are planted."""
    here = tmp_path_factory.mktemp("project")
    for name in ("mg3d", "flows"):
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, here)
    params = load_params(ROOT / paths.PARAMS)
    training = params.pretrain.model_copy(
        update={"num_ranks": 1, "num_steps": 2, "batch_size": 4, "validate_every_steps": 1}
    )
    task = params.downstream.stoic2021.model_copy(update={"num_steps": 3, "num_bootstrap": 100})
    changed = {
        "write_cohort": COHORT,
        "pretrain": training,
        "downstream": params.downstream.model_copy(update={"stoic2021": task}),
    }
    tree = params.model_copy(update=changed).model_dump(mode="json", by_alias=True)
    tree["sources"] = {"dicom_export": tree["sources"]["dicom_export"]}
    (here / paths.PARAMS).write_text(yaml.safe_dump(tree))
    write_cohort(here / paths.DATA, COHORT)
    _plant(here / paths.DATA)
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=here, check=True)
    return here


def _plant(data: Path) -> None:
    """Canaries in every header, in every report and its columns, and in the folders' names."""
    for file in sorted(path for path in (data / "dicom").rglob("*") if path.is_file()):
        try:
            header = pydicom.dcmread(file)
            number = str(header.PatientID)
            accession = str(header.AccessionNumber)
        except Exception:  # broken on purpose
            continue
        header.PatientName = f"Qxfamily{number}^Qxgiven{number}"
        header.PatientID = f"QXMRN-{number}"
        header.AccessionNumber = f"QXA{accession}"
        header.PatientBirthDate = "19310229" if number.endswith("1") else "19310228"
        header.OtherPatientIDs = f"QXOLD-{number}"
        header.PatientAddress = f"{number[:4]} Qxstreet, Qxtown"
        header.PatientTelephoneNumbers = f"+49 555 {number}"
        header.ReferringPhysicianName = f"Qxreferrer{number[:4]}"
        header.OperatorsName = f"Qxoperator{number[:4]}"
        header.DeviceSerialNumber = f"QXSERIAL{number[:4]}"
        header.save_as(file)
    for folder in sorted((data / "dicom").iterdir()):
        if folder.is_dir():
            folder.rename(folder.with_name(f"Qxfamilyfolder_{folder.name}"))
    table = data / "reports.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        number = row["PatientID"]
        row["PatientID"] = f"QXMRN-{number}"
        row["AccessionNumber"] = f"QXA{row['AccessionNumber']}"
        row["PatientName"] = f"Qxfamily{number}, Qxgiven{number}"
        if row["ReportText"].strip():
            row["ReportText"] += (
                f"\nPatient: Mrs. Qxgiven{number} Qxfamily{number}, MRN: QXMRN-{number},"
                f" accession number QXA{number}. Dictated by Dr. Qxreferrer{number[:4]}."
                f" Born 28.02.1931. Call +49 555 {number}."
            )
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_store_log_or_database_holds_an_identifier_after_a_run(project: Path) -> None:
    values = canary.identifiers(project / paths.DATA) | {"Qxfamilyfolder": "folder"}
    kinds = set(values.values())
    assert {"PatientName", "PatientID", "AccessionNumber", "PatientBirthDate", "folder"} < kinds
    assert len([value for value in values if "qx" in value.lower()]) > 100
    log = project / "runs/console.log"
    log.parent.mkdir()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))},
        "PREFECT_HOME": str(project / "runs/prefect"),
        "PYTHONPATH": str(project),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
        "MG3D_DEBUG": "1",  # tracebacks too
    }
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "flows.pipeline", "--tasks", "stoic2021"],
            cwd=project,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=1700,
        )
    assert done.returncode == 0, log.read_text()[-3000:]
    stores = ("prepared", "runs", "dvc.lock", "params.yaml", ".dvc")
    searched = [project / name for name in stores]
    for file in (
        "runs/mlflow.db",
        "runs/prefect/prefect.db",
        "prepared/build_manifest/ledger.jsonl",
    ):
        assert (project / file).stat().st_size > 0, file
    finds = canary.search(searched, values)
    assert not finds, "\n".join(map(str, finds[:40]))
    (project / "prepared/leak.json").write_text(f'{{"who": "{next(iter(values))}"}}')
    assert canary.search([project / "prepared"], values), "the search looks there"
