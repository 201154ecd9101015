"""From a model down to studies, and from a patient up to models."""

import pytest

from mg3d.registry import encoder, lineage
from mg3d.registry.registration import register

from .conftest import World


def test_a_model_leads_to_its_studies_and_a_patient_to_the_models(world: World) -> None:
    uris = register(world.run, world.params)
    found = lineage.of_model("models:/mg3d-stoic2021@candidate")
    assert {"contract", "git_commit", "dvc_lock_sha256", "checkpoint_sha256"} <= found.keys()
    cell, pretraining = found["runs"]
    assert cell["cases"] == {"test": ["case-2"], "train": ["case-1"]}
    assert pretraining["studies"] == {"train": ["study-1"], "validation": ["study-2"]}
    assert pretraining["name"] == "pretrain"

    only_pretrained = lineage.of_patient("patient-2")
    assert [run["name"] for run in only_pretrained["runs"]] == ["pretrain"]
    digest = found["checkpoint_sha256"]
    assert only_pretrained["checkpoints"] == [digest]
    assert set(uris) <= set(only_pretrained["models"])  # all are made from that checkpoint

    only_tested = lineage.of_patient("patient-9")
    assert only_tested["checkpoints"] == []
    names = {run["name"] for run in only_tested["runs"]}
    assert "stoic2021/frozen-seed0" in names
    assert any("stoic2021/test/auroc" in run["metrics"] for run in only_tested["runs"])
    assert not [uri for uri in only_tested["models"] if "encoder" in uri]
    with pytest.raises(ValueError, match="no run recorded patient-0"):
        lineage.of_patient("patient-0")
    assert encoder.describe("models:/mg3d-encoder@candidate")["downstream"]
