"""The encoder in the registry: equal to its checkpoint, without pickle; found, and embedding."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mg3d import paths, tracking
from mg3d.embed import embed
from mg3d.fingerprint import Fingerprint, file_sha256
from mg3d.models.mg3d import MG3D
from mg3d.params import DicomVolumes, Params, load_params
from mg3d.registry import encoder, lookup
from mg3d.training import checkpoint
from mg3d.training.checkpoint import latest, load_encoder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / paths.PARAMS)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def run(here: Path, params: Params) -> Path:
    """A pre-training run's folder with one checkpoint of an untrained model."""
    folder = paths.RUNS / "pretrain-x"
    torch.manual_seed(0)
    image_only = params.objective.model_copy(
        update={f"{term}_weight": 0.0 for term in ("mlm", "sfr", "cml", "dfa", "ssm", "itc")}
    )
    model = MG3D(params.model, image_only)
    checkpoint.save(
        folder / paths.CHECKPOINTS,
        step=1,
        model=model,
        optimizer=torch.optim.AdamW(model.vision_encoder.parameters()),
        contract=params.contract,
        model_params=params.model,
        objective_params=image_only,
        fingerprint=Fingerprint({"seed": 0}),
        rng=torch.zeros(1, 8, dtype=torch.uint8),
        position={},
        num_kept=2,
    )
    with tracking.track(folder, "pretrain", params, parent=tracking.pipeline(folder, params)):
        pass
    return folder


def test_what_was_measured_of_a_checkpoint_is_found(run: Path, params: Params) -> None:
    checkpoint = latest(run / paths.CHECKPOINTS)
    assert checkpoint is not None
    digest = file_sha256(checkpoint / paths.WEIGHTS)
    headline = {"name": "auroc", "value": 0.75, "interval": None, "null": {"a": 0.5}}
    for cell in params.cells():
        parent = tracking.pipeline(run, params)
        with tracking.track(paths.cell_folder(run, *cell), str(cell), params, parent) as tracked:
            tracked.log_result(
                {"task": cell.task, "headline": headline, "checkpoint_sha256": digest}
            )
    found = lookup.downstream_metrics(digest)
    assert list(found) == [str(cell) for cell in params.cells()]
    assert found["stoic2021/finetune-seed0"] == {
        "stoic2021/test/auroc": 0.75, "stoic2021/test/null_a": 0.5,
    }  # fmt: skip
    assert lookup.downstream_metrics("another") == {}
    uri = encoder.register(run, params.register_)
    assert encoder.describe(uri)["downstream"] == found


def test_the_registered_encoder_equals_the_checkpoint_and_is_registered_once(
    run: Path, params: Params
) -> None:
    uri = encoder.register(run, params.register_)
    assert uri == "models:/mg3d-encoder/1"
    assert encoder.register(run, params.register_) == uri

    registered = encoder.load_registered("models:/mg3d-encoder@candidate")
    assert registered.contract == params.contract
    checkpoint = latest(run / paths.CHECKPOINTS)
    assert checkpoint is not None
    of_checkpoint, _, _ = load_encoder(checkpoint)
    volume = np.random.default_rng(0).random((2, 1, *params.contract.shape_voxels), np.float32)
    with torch.inference_mode():
        expected = of_checkpoint.features(torch.from_numpy(volume)).numpy()
    np.testing.assert_allclose(registered.embed(volume), expected, atol=1e-6)

    described = encoder.describe("models:/mg3d-encoder@candidate")
    assert described["contract"] == params.contract.digest()
    assert described["aliases"] == ["candidate"]
    assert {"git_commit", "dvc_lock_sha256", "checkpoint_sha256"} <= described.keys()
    stored = {path.name for path in (paths.RUNS / "artifacts").rglob("*") if path.is_file()}
    assert {paths.WEIGHTS, "input_example.json"} <= stored
    assert not [name for name in stored if name.endswith((".pkl", ".pt", ".pth", ".bin"))]


def test_the_encoder_refuses_another_shape_and_raw_hu(run: Path, params: Params) -> None:
    encoder.register(run, params.register_)
    registered = encoder.load_registered("models:/mg3d-encoder/1")
    with pytest.raises(ValueError, match="contract wants"):
        registered.embed(np.zeros((1, 1, 8, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"apply the contract's window"):
        registered.embed(np.full((1, 1, *params.contract.shape_voxels), -1000, np.float32))


def test_unknown_models_and_empty_runs_name_the_remedy(here: Path, params: Params) -> None:
    with pytest.raises(ValueError, match="mg3d register RUN"):
        encoder.load_registered("models:/mg3d-encoder@champion")
    with pytest.raises(ValueError, match="mg3d pretrain"):
        encoder.register(here, params.register_)


@pytest.mark.real_ct
def test_a_real_ct_is_embedded_by_the_registered_encoder(
    run: Path, params: Params, real_ct_dicom: Path
) -> None:
    """One real study in, one finite embedding out; the same twice."""
    encoder.register(run, params.register_)
    registered = encoder.load_registered("models:/mg3d-encoder@candidate")
    tables = []
    for name in ("a.parquet", "b.parquet"):
        export = DicomVolumes(path=real_ct_dicom)
        ledger = embed(export, Path(name), registered, params.convert_volumes)
        assert ledger.summary()["used"] == 1, json.dumps(ledger.summary())
        tables.append(pd.read_parquet(name))
    vector = np.asarray(tables[0].embedding[0])
    assert vector.shape == (16 * params.model.vision.embed_dim,)
    assert np.isfinite(vector).all()
    assert vector.std() > 0
    assert tables[0].study_id[0].startswith("study-")
    np.testing.assert_array_equal(vector, tables[1].embedding[0])
