"""The results table: a row per task and mode, nulls beside the value, null instead of 0."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mg3d import paths
from mg3d.downstream import DOWNSTREAM
from mg3d.finetuning.task import score as score_task
from mg3d.params import Stoic2021
from mg3d.score import score
from mg3d.table import rows, table, values

COVID = np.array([0, 1] * 12)
BASE = Stoic2021(num_bootstrap=400)


def write(
    run: Path,
    mode: str,
    seed: int,
    probability: np.ndarray,
    fold: int | None = None,
    tested: slice = slice(None),
) -> Path:
    """A cell of stoic2021 as an evaluation writes it, from probabilities of 24 patients, of which
    it has those ``tested``."""
    folder = paths.cell_folder(run, "stoic2021", mode, seed, fold)
    (folder / "predictions").mkdir(parents=True)
    names = [f"case-{n:02d}" for n in range(24)]
    severe = np.where(COVID == 1, np.arange(24) // 6 % 2, np.nan)
    for system, p in (
        ("model", probability),
        ("prevalence", np.full(24, 0.5)),
        ("random_encoder", np.linspace(0, 1, 24)),
    ):
        columns = {
            "case_id": names,
            "patient_id": names,
            "primary": True,
            "covid": COVID,
            "severe": severe,
        }
        frame = pd.DataFrame({**columns, "p_covid": p, "p_severe": p})[tested]
        frame.to_csv(folder / "predictions" / f"{system}.csv", index=False)
    thresholds = [
        {"system": system, "label": label, "threshold": 0.5, "reason": ""}
        for system in ("model", "prevalence", "random_encoder")
        for label in ("covid", "severe")
    ]
    pd.DataFrame(thresholds).to_csv(folder / "predictions/thresholds.csv", index=False)
    params = BASE.model_copy(update={"mode": mode, "seed": seed, "fold": fold})
    result = {
        "task": "stoic2021",
        "mode": mode,
        "seed": seed,
        "fold": fold,
        "test_sha256": str(tested),
        **score_task(DOWNSTREAM["stoic2021"], folder, params),
        "ledger": {"used": 60, "quarantined": 2, "reasons": {"unreadable": 2}},
        "test_openings": seed + 1,
        "inputs": {"params": params.model_dump(mode="json")},
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def severity(strength: float, seed: int) -> np.ndarray:
    """Probabilities that know the severity as well as ``strength`` says."""
    noise = np.random.default_rng(seed).random(24)
    return strength * (np.arange(24) // 6 % 2) + (1 - strength) * noise


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for seed in (0, 1, 2):
        write(tmp_path, "scratch", seed, severity(0.05, seed))
        write(tmp_path, "frozen", seed, severity(0.45, 10 + seed))
    return tmp_path


def auroc(probability: np.ndarray) -> float:
    positive = COVID == 1
    return float(roc_auc_score((np.arange(24) // 6 % 2)[positive], probability[positive]))


def test_seeds_become_one_row_and_frozen_is_tested_against_scratch(run: Path) -> None:
    scratch, frozen = rows(run)
    assert (scratch.mode, frozen.mode, frozen.metric) == ("scratch", "frozen", "severe_auroc")
    per_seed = {seed: auroc(severity(0.45, 10 + seed)) for seed in (0, 1, 2)}
    assert frozen.of_seed == pytest.approx(per_seed)
    assert frozen.estimate.value == pytest.approx(np.mean(list(per_seed.values())))
    assert frozen.spread == pytest.approx(np.std(list(per_seed.values()), ddof=1))
    assert scratch.against_scratch is None
    difference = frozen.against_scratch
    assert difference is not None
    assert scratch.estimate.value is not None
    assert difference.value == pytest.approx(frozen.estimate.value - scratch.estimate.value)
    assert difference.interval is not None
    assert difference.interval[0] < difference.value < difference.interval[1]  # type: ignore[operator]
    assert difference.p_value is not None
    assert (difference.interval[0] > 0) == (difference.p_value < 0.05)
    assert frozen.nulls["prevalence"] == 0.5
    assert (frozen.used, frozen.left_out, frozen.test_openings) == (60, 2, 3)
    assert frozen.against_random is not None  # the same probe on an untrained encoder
    of_random = auroc(np.linspace(0, 1, 24))
    assert frozen.against_random.value == pytest.approx(frozen.estimate.value - of_random)
    assert frozen.against_random.interval is not None
    assert frozen.against_random.p_value is not None


def test_finetune_is_paired_with_scratch_and_its_random_encoder_is_no_peer(tmp_path: Path) -> None:
    known = np.arange(24) // 6 % 2  # who is severe
    guessed = np.where(known, 0.6, 0.5) + np.arange(24) % 5 / 10
    write(tmp_path, "scratch", 0, guessed)
    write(tmp_path, "finetune", 0, np.where(known, 0.9, 0.1))
    scratch, finetune = rows(tmp_path)
    assert (scratch.mode, finetune.mode) == ("scratch", "finetune")
    difference = finetune.against_scratch
    assert difference is not None
    assert difference.value == pytest.approx(1 - auroc(guessed))
    generator, gaps = np.random.default_rng(0), []
    for _ in range(400):  # the same resampled patients for both
        drawn = generator.integers(24, size=24)
        drawn = drawn[COVID[drawn] == 1]
        if 0 < known[drawn].sum() < len(drawn):
            gaps.append(1 - roc_auc_score(known[drawn], guessed[drawn]))
    assert difference.interval == pytest.approx(tuple(np.quantile(gaps, [0.025, 0.975])))
    below = sum(gap <= 1e-9 for gap in gaps)  # a tie, but for rounding
    assert difference.p_value == pytest.approx(min(1, 2 * (below + 1) / (len(gaps) + 1)))
    assert (scratch.against_random, finetune.against_random) == (None, None)
    assert "random_encoder (a frozen probe) " in table(tmp_path).splitlines()[3]


def test_markdown_csv_and_a_page_that_needs_no_network(run: Path) -> None:
    text = table(run)
    assert (run / "results.md").read_text() == text + "\n"
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines[2][:4] == ["stoic2021", "scratch", "3", "severe_auroc"]
    assert lines[2][8:] == ["-", "-", "-", "-", "60", "2", "-"]
    assert re.fullmatch(r"\+0\.\d{3} \(-?0\.\d{3} to 0\.\d{3}\)", lines[3][8])
    (first, second) = csv.DictReader((run / "results.csv").read_text().splitlines())
    assert first["difference"] == ""
    assert float(second["value"]) == rows(run)[1].estimate.value
    assert "prevalence=0.5" in second["nulls"]
    assert list(values(run)) == ["stoic2021/scratch/severe_auroc", "stoic2021/frozen/severe_auroc"]
    assert values(run)["stoic2021/frozen/severe_auroc"] == float(second["value"])
    page = (run / "results.html").read_text()
    links = re.findall(r"(?:src|href)=\"([^\"]{0,22})", page)
    assert links
    assert all(link.startswith("data:image/png;base64") for link in links)
    assert "<script" not in page
    assert page.count("<tr>") == 3
    assert page.count("<details>") == 6
    assert "unreadable" in page


def test_one_cell_is_as_recorded_and_null_is_not_zero(tmp_path: Path) -> None:
    folder = write(tmp_path, "frozen", 0, severity(0.3, 0))
    result = json.loads((folder / "result.json").read_text())
    (row,) = rows(tmp_path)
    assert row.estimate.value == result["headline"]["value"]
    assert list(row.estimate.interval or ()) == result["headline"]["interval"]
    assert (row.spread, row.against_scratch) == (None, None)
    assert row.against_random is not None
    result["metrics"]["severe_auroc"] = {"value": None, "interval": None, "reason": "one class"}
    (folder / "result.json").write_text(json.dumps(result))
    assert table(tmp_path).splitlines()[2].split("|")[5].strip() == "null"
    assert values(tmp_path) == {}
    (line,) = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    assert (line["value"], line["reason"]) == ("", "one class")


def test_other_test_cases_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path, "scratch", 0, severity(0.3, 0))
    folder = write(tmp_path, "frozen", 0, severity(0.3, 0))
    for file in (folder / "predictions").iterdir():
        file.write_text(file.read_text().replace("case-", "other-"))
    difference = rows(tmp_path)[1].against_scratch
    assert difference is not None
    assert (difference.value, difference.reason) == (None, "not the same cases")


def test_scores_come_again_from_the_files_and_a_changed_one_is_named(run: Path) -> None:
    found = score(run)
    assert len(found) == 6
    assert all(numbers > 40 and not lines for numbers, lines in found.values())
    folder = run / "evaluate" / "stoic2021" / "frozen-seed1"
    file = folder / "predictions" / "model.csv"
    predicted = pd.read_csv(file)
    predicted["p_severe"] = 1 - predicted["p_severe"]
    predicted.to_csv(file, index=False)
    ((name, (_, lines)),) = score(folder).items()
    assert name == "stoic2021/frozen-seed1"
    changed = {line.split(":")[0] for line in lines}
    assert "metrics/severe_auroc/value" in changed
    assert not any("covid" in line for line in lines)
    assert not score(run)["stoic2021/frozen-seed0"][1]


def test_no_results_names_the_remedy(tmp_path: Path) -> None:
    for function in (table, score):
        with pytest.raises(ValueError, match="mg3d evaluate"):
            function(tmp_path)


def test_folds_that_test_other_patients_are_pooled_into_one_row(tmp_path: Path) -> None:
    """By hand: the AUROC of all 24 predictions, each by the model of its fold."""
    for seed in (0, 1):
        for mode, strength in (("scratch", 0.05), ("frozen", 0.3)):
            for fold in range(3):
                by_fold = severity(strength, 100 * seed + 10 * fold)
                write(tmp_path, mode, seed, by_fold, fold, slice(fold, None, 3))
    write(tmp_path, "frozen", 0, severity(0.45, 7))  # another row: it is no fold
    scratch, alone, frozen = rows(tmp_path)
    assert [(r.mode, r.folds, len(r.folders)) for r in (scratch, alone, frozen)] == [
        ("scratch", (0, 1, 2), 6), ("frozen", (), 1), ("frozen", (0, 1, 2), 6),
    ]  # fmt: skip
    for seed in (0, 1):
        pooled = np.empty(24)
        for fold in range(3):
            pooled[fold::3] = severity(0.3, 100 * seed + 10 * fold)[fold::3]
        assert frozen.of_seed[seed] == pytest.approx(auroc(pooled))
    assert frozen.estimate.interval is not None
    low, high = frozen.estimate.interval
    assert low < (frozen.estimate.value or 0) <= high
    assert frozen.against_scratch is not None
    assert frozen.against_scratch.value is not None
    assert frozen.nulls["prevalence"] == 0.5
    assert alone.against_scratch is None
    assert table(tmp_path).splitlines()[-1].split("|")[-2].strip() == "3"
    assert "stoic2021/frozen-crossed/severe_auroc" in values(tmp_path)
    assert "stoic2021/frozen-seed0-fold2" in (tmp_path / "results.html").read_text()


def test_folds_on_one_test_set_are_averaged(tmp_path: Path) -> None:
    for fold in (0, 1):
        write(tmp_path, "frozen", 0, severity(0.3, fold), fold)
    (row,) = rows(tmp_path)
    assert row.folds == (0, 1)
    expected = np.mean([auroc(severity(0.3, fold)) for fold in (0, 1)])
    assert row.of_seed == {0: pytest.approx(expected)}
    assert row.estimate.value == pytest.approx(expected)


def test_folds_that_overlap_in_part_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "frozen", 0, severity(0.3, 0), 0, slice(0, 18))
    write(tmp_path, "frozen", 0, severity(0.3, 1), 1, slice(12, 24))
    with pytest.raises(ValueError, match="their test sets overlap"):
        rows(tmp_path)
