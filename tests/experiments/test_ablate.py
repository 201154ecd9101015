"""Rungs, aggregation by hand, and an ablation that is interrupted, goes on, and is then done."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from mg3d import launch, paths
from mg3d.experiments import ablate as module
from mg3d.experiments import tables
from mg3d.experiments.ablate import BASE, UNTRAINED, ablate, cells, metrics_of, rungs, summarise
from mg3d.experiments.run import resumable
from mg3d.metrics.bootstrap import Estimate
from mg3d.params import Ablate, Objective, Params, load_params

ROOT = Path(__file__).parents[2]


def weights(objective: Objective) -> dict[str, float]:
    found = {term: getattr(objective, f"{term}_weight") for term in module.TERMS}
    return {term: weight for term, weight in found.items() if weight}


def test_the_rungs_add_one_term_each_with_the_files_weight() -> None:
    found = rungs(load_params(ROOT / paths.PARAMS).objective)
    base = {"mlm": 1.0, "mim": 1.0}
    assert {name: weights(objective) for name, objective in found.items()} == {
        "MIM+MLM": base,
        "+SFR": base | {"sfr": 0.1},
        "+CML": base | {"sfr": 0.1, "cml": 0.1},
        "+SSM": base | {"sfr": 0.1, "cml": 0.1, "ssm": 0.1},
        "+DFA": base | {"sfr": 0.1, "cml": 0.1, "ssm": 0.1, "dfa": 0.1},
        "+ITC (ours)": base | {"sfr": 0.1, "cml": 0.1, "ssm": 0.1, "dfa": 0.1, "itc": 10.0},
    }
    assert list(found) == ["MIM+MLM", "+SFR", "+CML", "+SSM", "+DFA", "+ITC (ours)"]


def test_a_term_that_the_file_leaves_out_has_no_rung() -> None:
    assert list(rungs(Objective(itc_weight=0, ssm_weight=0))) == [BASE, "+SFR", "+CML", "+DFA"]
    nothing = Objective(mlm_weight=0, sfr_weight=0, mim_weight=0)
    with pytest.raises(ValueError, match=r"starts from MIM\+MLM and both weights are 0: give"):
        rungs(nothing)


def test_cells_are_the_files_pretraining_but_for_terms_seed_and_steps() -> None:
    params = load_params(ROOT / paths.PARAMS)
    planned = cells(params)
    assert len(planned) == 18
    assert len({(c.params.objective, c.params.pretrain.seed) for c in planned.values()}) == 18
    whole = planned["+ITC (ours)", 0].params
    assert whole.objective == params.objective
    assert whole.pretrain == params.pretrain.model_copy(
        update={"num_steps": params.ablate.num_steps}
    )
    profile = params.model_copy(update={"ablate": Ablate(num_steps=None)})
    assert cells(profile)["+ITC (ours)", 0].params.pretrain == params.pretrain


def test_metrics_of_a_cell_by_hand() -> None:
    probe = {"image_to_text": [1, 6, 5, 9], "text_to_image": [2, 3, 7, 8]}
    tasks = {"a": {"name": "auroc", "value": 0.5}, "b": {"name": "dice", "value": None}}
    found = metrics_of({"probe": probe, "validation": {"mim": 0.25}, "tasks": tasks})
    assert found["probe/recall_at_5"] == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert found["probe/image_to_text_recall_at_5"] == 0.5
    assert found["probe/median_rank"] == 5.5
    assert found["probe/text_to_image_median_rank"] == 5
    assert found["validation/mim"] == 0.25
    assert found["a/auroc"] == 0.5
    assert not [key for key in found if key.startswith("b/")]


def cell(hit: bool, **validation: float) -> dict[str, Any]:
    rank = [1] * 12 if hit else [12] * 12
    return {
        "run": "pretrain-0",
        "probe": {"image_to_text": rank, "text_to_image": rank},
        "validation": validation,
        "loss": {},
        "falls": {"mim": (2.0, 1.0), "mlm": (1.0, 1.5)},
        "tasks": {},
    }


def hand_worked(tmp_path: Path) -> dict[str, Any]:
    """Two rungs, two seeds, twelve patients: the second rung finds all where the first finds none."""  # noqa: E501
    params = load_params(ROOT / paths.PARAMS).model_copy(
        update={"ablate": Ablate(seeds=(0, 1), num_bootstrap=100)}
    )
    objectives = dict(list(rungs(params.objective).items())[:3])
    found = {
        (BASE, 0): cell(False, mim=1.0),
        (BASE, 1): cell(False, mim=3.0),
        ("+SFR", 0): cell(True, mim=0.5),
        ("+SFR", 1): cell(True, mim=3.5),
        ("+CML", 0): cell(True, mim=0.5, cml_recall_at_1=0.25),
        ("+CML", 1): cell(True, mim=3.5, cml_recall_at_1=0.75),
        (UNTRAINED, 0): {"probe": cell(False)["probe"]},
        (UNTRAINED, 1): {"probe": cell(False)["probe"]},
    }
    return summarise(found, objectives, [f"patient-{i}" for i in range(12)], params)


def test_means_differences_and_readings_by_hand(tmp_path: Path) -> None:
    result = hand_worked(tmp_path)
    base, sfr, cml = result["rungs"].values()
    expected = {"values": [1.0, 3.0], "n": 2, "mean": 2.0, "sd": pytest.approx(2**0.5)}
    assert base["metrics"]["validation/mim"] == expected
    assert "difference" not in base
    difference = {"values": [-0.5, 0.5], "n": 2, "mean": 0.0, "sd": pytest.approx(0.5**0.5)}
    assert sfr["difference"]["validation/mim"] == difference
    assert sfr["probe_gain"] == {
        "value": 1, "interval": [1, 1], "reason": None, "reading": "helps"
    }  # fmt: skip
    assert cml["probe_gain"]["reading"] == "unclear"
    assert cml["difference"]["validation/cml_recall_at_1"]["n"] == 0  # no rung before has it
    assert result["chance"] == {"probe/recall_at_5": pytest.approx(5 / 12),
                                "probe/median_rank": 6.5}  # fmt: skip
    assert result["nulls"][UNTRAINED]["metrics"]["probe/median_rank"]["mean"] == 12


def test_the_tables_say_it_and_a_dash_has_a_reason(tmp_path: Path) -> None:
    result = hand_worked(tmp_path)
    text = module.markdown(result)
    lines = text.splitlines()
    assert "| MIM+MLM | 0 ± 0 | 12 ± 0 | 2 ± 1.41 | – |" in lines
    assert "| untrained encoder | 0 ± 0 | 12 ± 0 | – | – |" in lines
    assert "| chance | 0.417 | 6.5 | – | – |" in lines
    assert "- – CML recall@1: MIM+MLM, +SFR trains no CML" in lines
    assert "| +SFR | 1 (1 to 1) | 1 (1 to 1) | +1 (+1 to +1) | helps |" in lines
    assert "| +SFR | MIM loss | -0.5 | +0.5 | +0 ± 0.707 |" in lines
    assert "| mim | 2 → 1 | 2 → 1 | 2 of 2 |" in lines
    assert "| mlm | 1 → 1.5 | 1 → 1.5 | 0 of 2 |" in lines
    tables.write_csv(tmp_path / "table.csv", module.csv_rows(result))
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    (row,) = [r for r in rows if (r["rung"], r["metric"]) == ("+SFR", "validation/mim")]
    assert (row["seed_0"], row["seed_1"], row["mean"], row["n"]) == ("0.5", "3.5", "2.0", "2")
    assert (row["difference_seed_0"], row["difference_mean"]) == ("-0.5", "0.0")
    (absent,) = [r for r in rows if (r["rung"], r["metric"]) == (BASE, "validation/mim")]
    assert absent["difference_mean"] == ""


@pytest.mark.parametrize(
    ("interval", "word"),
    [((0.01, 0.2), "helps"), ((-0.2, -0.01), "does not: it hurts"), ((-0.1, 0.2), "unclear"),
     ((0.0, 0.2), "unclear"), (None, "unclear")],
)  # fmt: skip
def test_the_reading_is_the_intervals(interval: tuple[float, float] | None, word: str) -> None:
    assert module.reading(Estimate(0.1, interval)) == word


def test_an_interrupted_ablation_goes_on_and_a_finished_one_is_not_redone(
    tiny: tuple[Path, Params],
    trained: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared, params = tiny
    off = dict.fromkeys(("sfr_weight", "ssm_weight", "dfa_weight"), 0.0)
    params = params.model_copy(update={"objective": params.objective.model_copy(update=off)})
    runs = tmp_path / "runs"
    whole = launch.torchrun

    def interrupted(command: list[str], *layout: int, **nodes: object) -> str:
        if len(trained) == 3:
            raise SystemExit(launch.RESUMABLE)
        return whole(command, *layout, **nodes)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(launch, "torchrun", interrupted)
        with pytest.raises(SystemExit) as left:
            ablate(prepared, runs, params)
    assert left.value.code == launch.RESUMABLE
    assert len(trained) == 3

    file = ablate(prepared, runs, params)
    assert len(trained) == len(set(trained)) == 6  # three rungs, two seeds, none twice
    folder = file.parent
    assert file == folder / paths.RESULT
    assert folder.name.startswith("ablate-")
    result = json.loads(file.read_text())
    assert list(result["rungs"]) == [BASE, "+CML", "+ITC (ours)"]
    assert result["num_steps"] == 2
    last = result["rungs"]["+ITC (ours)"]["metrics"]
    assert {"loss/paper_total", "validation/mim", "probe/recall_at_5"} <= set(last)
    by_hand = (
        last["loss/mlm"]["mean"] + last["loss/mim"]["mean"] + 0.1 * last["loss/cml"]["mean"]
    )  # fmt: skip
    assert last["loss/paper_total"]["mean"] == pytest.approx(by_hand)
    assert {f.name for f in (folder / paths.FIGURES).iterdir()} == {"ablation.png", "losses.png"}
    assert "untrained encoder" in (folder / "table.md").read_text()

    from mg3d import tracking

    store, parent = tracking.client(), tracking.attach(folder).run_id
    for run in {Path(file).parent for file in trained}:
        tags = store.get_run(tracking.attach(run).run_id).data.tags
        assert tags["mlflow.parentRunId"] == parent
    assert store.get_run(parent).info.status == "FINISHED"
    assert {f.path for f in store.list_artifacts(parent)} >= {"table.md", "table.csv", "figures"}

    before = {f: f.stat().st_mtime_ns for f in runs.rglob("*") if "mlflow" not in f.name}
    assert ablate(prepared, runs, params) == file
    (folder / paths.RESULT).unlink()
    again = json.loads(ablate(prepared, runs, params).read_text())  # from what was measured
    assert again == result
    assert len(trained) == 6
    measured = {f for f in before if f.parent.name == "cells"}
    assert len(measured) == 8
    assert {f.stat().st_mtime_ns for f in measured} == {before[f] for f in measured}


def test_a_task_that_a_rung_cannot_serve_says_why(params: Params, tmp_path: Path) -> None:
    base = cells(params)[BASE, 0].params
    (headline,) = module.evaluate_tasks(tmp_path, base, ["ct_rate_retrieval"]).values()
    assert headline["value"] is None
    assert "dual encoder" in headline["reason"]


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / paths.PARAMS)


def test_sigterm_leaves_with_the_code_that_the_flow_resumes_from() -> None:
    with pytest.raises(SystemExit) as left, resumable():
        raise SystemExit(128 + 15)
    assert left.value.code == launch.RESUMABLE
    with pytest.raises(SystemExit) as left, resumable():
        raise SystemExit(3)
    assert left.value.code == 3
