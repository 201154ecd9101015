"""Each kind of task answers from what it kept; the folder of a model is all it needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training.tiny_prepared import CONTRACT, OBJECTIVE, tiny_model

from mg3d import paths
from mg3d.data.ct.refused import Refused
from mg3d.finetuning.fitted import keep_fitted, read_fitted
from mg3d.fingerprint import Fingerprint
from mg3d.inference.model import TaskModel, load_task_model, write_task_model
from mg3d.inference.study import Admission, Study, check, read_places, read_studies
from mg3d.ledger import Reason
from mg3d.params import CtrgReport, Downstream


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mg3d.models.mg3d import MG3D
    from mg3d.training.checkpoint import save

    folder = tmp_path_factory.mktemp("checkpoint")
    params = tiny_model(folder / "text")
    zero = {f"{term}_weight": 0.0 for term in ("mlm", "sfr", "mim", "cml", "dfa", "ssm")}
    objective = OBJECTIVE.model_copy(update=zero)
    torch.manual_seed(0)
    model = MG3D(params, objective)
    return save(
        folder, step=1, model=model, optimizer=torch.optim.AdamW(model.parameters()),
        contract=CONTRACT, model_params=params, objective_params=objective,
        fingerprint=Fingerprint({}), rng=torch.zeros(1, 8, dtype=torch.uint8), position={},
        num_kept=1,
    )  # fmt: skip


@pytest.fixture
def model_of(checkpoint: Path, tmp_path: Path) -> Callable[..., TaskModel]:
    def make(module: Any, task: str, kind: str, params: Any = None, **kept: Any) -> TaskModel:
        cell = tmp_path / "cell"
        kept = {"contract_digest": CONTRACT.digest()} | kept
        params = params or Downstream().task(task)
        keep_fitted(cell / "predictions", module, task=task, kind=kind, params=params, **kept)
        write_task_model(checkpoint, cell, tmp_path / "model", None)
        return load_task_model(tmp_path / "model")

    return make


@pytest.fixture
def study() -> Study:
    from downstream.layouts import chest_hu

    return Study("study-1", chest_hu((40, 36, 24)), np.diag([6.0, 6.0, 6.0, 1.0]))


def probe(num_outputs: int) -> Any:
    from mg3d.finetuning.probe import Classifier

    torch.manual_seed(1)
    head = Classifier(torch.randn(8, 64), num_outputs, None)
    torch.nn.init.normal_(head.head.weight)
    return head


def test_classes_exclude_each_other(model_of: Any, study: Study) -> None:
    names = ["CP", "NCP", "Normal"]
    answer = model_of(probe(3), "cc_ccii", "multiclass", labels=names).answer(study)
    assert [finding.name for finding in answer.findings] == names
    assert sum(finding.probability for finding in answer.findings) == pytest.approx(1, abs=1e-5)
    assert answer.findings[0].called is None


def test_an_encoder_that_learnt_is_in_the_file_and_a_frozen_one_is_not(
    model_of: Any, checkpoint: Path, study: Study, tmp_path: Path
) -> None:
    from mg3d.finetuning.probe import Classifier
    from mg3d.training.checkpoint import load_encoder

    encoder, _, _ = load_encoder(checkpoint)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    torch.manual_seed(1)
    head = Classifier(torch.randn(8, 64), 1, encoder)
    torch.nn.init.normal_(head.head.weight)
    section, kept = Downstream().stoic2021, tmp_path / "cell" / paths.FITTED
    probability = {}
    for mode in ("frozen", "finetune"):
        params = section.model_copy(update={"mode": mode})
        model = model_of(head, "stoic2021", "classification", params, labels=["covid"])
        probability[mode] = model.answer(study).findings[0].probability
        assert bool(read_fitted(kept).encoder) == (mode == "finetune")
    assert probability["frozen"] != pytest.approx(probability["finetune"], abs=1e-4)


def test_places_are_judged_one_by_one(model_of: Any, study: Study, tmp_path: Path) -> None:
    model = model_of(probe(1), "luna16", "candidates", labels=["lesion"])
    with pytest.raises(ValueError, match="--candidates FILE"):
        model.answer(study)
    (tmp_path / "places.csv").write_text("coordX,coordY,coordZ,class\n-60,-60,30,0\n-90,-60,60,1\n")
    (placed,) = read_places([study], tmp_path / "places.csv")
    answer = model.answer(placed)
    assert [f.name for f in answer.findings] == [
        "lesion at -60.0 -60.0 30.0",
        "lesion at -90.0 -60.0 60.0",
    ]
    (tmp_path / "none.csv").write_text("x,y,z\n")
    with pytest.raises(ValueError, match=r"none.csv is no table of coordX"):
        read_places([study], tmp_path / "none.csv")


@torch.inference_mode()
def test_a_report_is_written_by_the_kept_decoder(
    model_of: Any, study: Study, checkpoint: Path
) -> None:
    from mg3d.finetuning.diagnosis import Diagnosis
    from mg3d.finetuning.report_writing import written_reports
    from mg3d.finetuning.reporter import Reporter, train_tokenizer
    from mg3d.inference.towers import windowed
    from mg3d.metrics.findings import FINDINGS
    from mg3d.training.checkpoint import load_encoder

    params = CtrgReport(width=16, num_layers=1, num_heads=2, vocabulary_size=300, max_new_tokens=6)
    tokenizer = train_tokenizer(["No effusion.", "A nodule."], params.vocabulary_size)
    torch.manual_seed(0)
    reporter = Reporter(torch.randn(3, 2, 64), tokenizer.get_vocab_size(), params, None)
    encoder, _, contract = load_encoder(checkpoint)
    tokens = encoder.eval().tokens(windowed(study, contract))
    told = np.zeros((1, len(FINDINGS)), int)
    told[0, 3] = 1
    [expected] = written_reports(reporter.eval(), tokens, told, tokenizer, params)
    diagnosis = Diagnosis(  # always the fourth finding
        np.zeros(64), np.ones(64), np.zeros((64, len(FINDINGS))), told[0] * 0.9, 1.0, 0.5
    )
    model = model_of(
        reporter, "ctrg_report", "report_generation", params, tensors=diagnosis.as_tensors(),
        tokenizer=tokenizer.to_str(), penalty=diagnosis.penalty, threshold=diagnosis.threshold,
    )  # fmt: skip
    answer = model.answer(study)
    assert answer.report == expected
    assert answer.as_json()["report"] == answer.report


def test_the_nearest_case_is_the_study_itself(
    model_of: Any, study: Study, checkpoint: Path
) -> None:
    from mg3d.inference.towers import windowed
    from mg3d.training.checkpoint import load_model

    with torch.inference_mode():
        own = load_model(checkpoint).model.encode_image(windowed(study, CONTRACT))
    other = torch.nn.functional.normalize(torch.randn(1, own.shape[1]), dim=-1)
    model = model_of(
        None, "ct_rate_retrieval", "retrieval",
        tensors={"gallery": torch.cat([other, own])}, case_ids=["case-a", "case-b"],
    )  # fmt: skip
    first, second = model.answer(study).nearest
    assert first == ("case-b", pytest.approx(1, abs=1e-5))
    assert second[0] == "case-a"


def test_prompts_answer_without_training(model_of: Any, study: Study, checkpoint: Path) -> None:
    from mg3d.finetuning.prompting import Prompted, embed_prompts
    from mg3d.inference.towers import collate_of
    from mg3d.training.checkpoint import load_model

    loaded = load_model(checkpoint)
    names = ["Nodule", "Pleural effusion"]
    text = embed_prompts(loaded.model, names, collate_of(loaded))
    head = Prompted(text, 0.1, torch.nn.functional.mse_loss)
    params = Downstream().ct_rate_diagnosis.model_copy(update={"mode": "zero_shot"})
    model = model_of(head, "ct_rate_diagnosis", "classification", params, labels=names)
    assert [finding.name for finding in model.answer(study).findings] == names


def test_a_head_of_another_contract_is_refused(model_of: Any) -> None:
    with pytest.raises(ValueError, match="what was fitted on them of 0000"):
        model_of(
            probe(1), "stoic2021", "classification", labels=["covid"], contract_digest="0" * 16
        )


def test_what_is_no_ct_of_a_chest_is_refused(study: Study, tmp_path: Path) -> None:
    chest = Admission(True, 60.0)
    check(study.volume, study.affine, chest)
    for volume, reason in (
        (study.volume[:, :, :1], Reason.WRONG_SHAPE),
        (np.zeros_like(study.volume), Reason.CONSTANT),
        (study.volume // 50, Reason.NOT_HU),
        (np.where(study.volume < -500, -1000, study.volume), Reason.NO_CHEST),
    ):
        with pytest.raises(Refused) as caught:
            check(volume, study.affine, chest)
        assert caught.value.reason is reason
    check(study.volume // 50, study.affine, Admission(False))  # MR has no HU
    with pytest.raises(Refused, match="unreadable: no such NIfTI file"):
        read_studies(tmp_path / "nothing", chest)
