"""The only file that knows folder and file names. Everything is relative to the project's root."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(os.environ.get("MG3D_ROOT", Path.cwd()))

PARAMS = Path("params.yaml")
DVC_LOCK = Path("dvc.lock")
DATA_DVC = Path("data.dvc")

# data/: yours, pinned by data.dvc
DATA = Path("data")
DICOM = DATA / "dicom"
REPORTS = DATA / "reports.csv"
CT_RATE = DATA / "ct_rate"
CTRG_CHEST = DATA / "ctrg_chest"
DOWNSTREAM = DATA / "downstream"

# prepared/: DVC's, one folder per stage
PREPARED = Path("prepared")
LEDGER_SUMMARY = "ledger.json"
LEDGER_ENTRIES = "ledger.jsonl"
MANIFEST = "manifest.parquet"
NIFTI = "nifti"
VOLUMES = "volumes"
REPORT_TABLE = "reports.parquet"
SENTENCE_TABLE = "sentences.parquet"
SENTENCE_MEANS = "means.npy"
SENTENCE_MEANS_TABLE = "means.parquet"
SPLITS = "splits.json"

# runs/: a run's folder, never in git
RUNS = Path("runs")
RUN_PARAMS = "params.yaml"
RESOLVED = RUNS / "params"  # of overrides, named by content
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"
TRAINING_STATE = "training_state.safetensors"
RESULT = "result.json"
FIGURES = "figures"
PREDICTIONS = "predictions"
SELECTION = "selection.json"
FITTED = "fitted.safetensors"
CASES = "cases.csv"
STUDIES = "studies.csv"
EVALUATE = "evaluate"
PIPELINE = "pipeline"  # of what the MLflow run of a whole pipeline holds
TEST_OPENINGS = "test_openings.jsonl"
CACHE = "cache"
FINGERPRINT = "fingerprint.json"
MLFLOW_RUN_ID = "mlflow_run_id"
SPOOL = "unsent_metrics.jsonl"


def stage_folder(stage: str, prepared: Path = PREPARED) -> Path:
    """Folder that the DVC stage ``stage`` writes."""
    return prepared / stage


def task_data(task: str, data: Path = DATA) -> Path:
    """Folder where the data set of a downstream task lies, in its official layout."""
    return data / "downstream" / task


def cell_folder(run: Path, task: str, mode: str, seed: int, fold: int | None = None) -> Path:
    """Folder of one evaluation of a run: a task in one mode, with one seed, in a fold if any."""
    return run / EVALUATE / task / cell_name(mode, seed, fold)


def cell_name(mode: str, seed: int, fold: int | None = None) -> str:
    """``frozen-seed0``; with a fold ``frozen-seed0-fold3``."""
    return f"{mode}-seed{seed}" + ("" if fold is None else f"-fold{fold}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in ``path``'s folder; rename it to ``path`` if the block succeeds.

    The content is fsynced before the rename and the folder after it, so a reader sees the old
    file or the new one, whole, also after a power cut. A failing block leaves the old file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)
