"""What a run made is in the registry: versions of code and safetensors, found by alias."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from mg3d import paths, tracking
from mg3d.registry.registration import register

from .conftest import World


@pytest.fixture(scope="module")
def uris(world: World) -> list[str]:
    return register(world.run, world.params)


def test_tasks_towers_and_encoder_are_registered_once(world: World, uris: list[str]) -> None:
    names = [uri.split("/")[1] for uri in uris]
    assert names == ["mg3d-covid19_20", "mg3d-stoic2021", "mg3d", "mg3d-encoder"]
    assert register(world.run, world.params) == uris
    store = tracking.client()
    for name, uri in zip(names, uris, strict=True):
        version = store.get_model_version_by_alias(name, "candidate")
        assert uri.endswith(f"/{version.version}")
        assert version.tags["contract"] == world.params.contract.digest()
        assert "Apache-2.0" in version.tags["licence"]
        assert version.tags["checkpoint_sha256"] in version.description
    version = store.get_model_version_by_alias("mg3d-stoic2021", "candidate")
    assert "CC BY-NC 4.0" in version.tags["licence"]
    assert "0.800, 95 % interval 0.700 to 0.990" in version.description
    assert "Research use" in version.description


def test_a_version_holds_no_pickle_and_says_what_goes_in(uris: list[str], here: Path) -> None:
    files = [path for path in (here / "stored").rglob("*") if path.is_file()]
    assert {paths.WEIGHTS, paths.FITTED, "model.json"} <= {path.name for path in files}
    assert not [p for p in files if p.suffix in {".pkl", ".pt", ".pth", ".bin", ".cloudpickle"}]
    about = mlflow.models.get_model_info(uris[1])
    assert about.signature.inputs.input_names() == ["path"]
    assert about.metadata["contract"]
    examples = [path.read_text() for path in files if path.name == "input_example.json"]
    assert any("study.nii.gz" in example for example in examples)


def test_the_loaded_task_answers_as_its_files_do_and_refuses_with_the_reason(
    world: World, uris: list[str], chest: Path, abdomen: Path
) -> None:
    from mg3d.inference.model import load_task_model, write_task_model
    from mg3d.inference.study import read_studies

    loaded = mlflow.pyfunc.load_model("models:/mg3d-stoic2021@candidate")
    rows = loaded.predict(pd.DataFrame({"path": [str(chest), str(abdomen)]}))
    cell = paths.cell_folder(world.run, "stoic2021", "frozen", 0)
    write_task_model(world.checkpoint, cell, Path("direct"), 60.0)
    direct = load_task_model(Path("direct"))
    (study,) = read_studies(chest, direct.admission)
    answer = json.loads(rows["answer"][0])
    assert answer == direct.answer(study).as_json()
    assert [f["name"] for f in answer["findings"]] == ["covid", "severe"]
    assert [f["threshold"] for f in answer["findings"]] == [0.4, None]
    assert 0 < answer["findings"][0]["probability"] < 1
    assert json.loads(rows["answer"][1])["refused"] == "no_chest"


def test_paths_outside_the_served_folder_are_not_read(
    uris: list[str], chest: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded = mlflow.pyfunc.load_model("models:/mg3d-stoic2021@candidate")
    monkeypatch.setenv("MG3D_INPUTS", str(tmp_path))
    with pytest.raises(ValueError, match="outside the folder that MG3D_INPUTS names"):
        loaded.predict(pd.DataFrame({"path": [str(chest)]}))


def test_the_towers_embed_find_and_retrieve(uris: list[str], chest: Path) -> None:
    loaded = mlflow.pyfunc.load_model("models:/mg3d@candidate")
    texts = ["No pleural effusion.", "The heart is enlarged."]
    rows = pd.DataFrame({"path": [str(chest), None, None], "text": [None, *texts]})
    embedded = loaded.predict(rows, params={"ask": "embed"})
    vectors = np.array([json.loads(answer) for answer in embedded["answer"]])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embedded["of"].tolist()[1:] == texts
    (found,) = loaded.predict(rows, params={"ask": "findings"})["answer"]
    assert [finding["name"] for finding in json.loads(found)] == texts
    ranked = loaded.predict(rows, params={"ask": "retrieve"})["answer"]
    first = json.loads(ranked[0])[0]
    assert first["similarity"] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)
    with pytest.raises(ValueError, match="embed, findings, retrieve"):
        loaded.predict(rows, params={"ask": "diagnose"})
