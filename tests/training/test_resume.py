"""A run that is cut off goes on: on as many ranks as there are, with each study once an epoch."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from tiny_prepared import tiny_model, write_prepared

from mg3d.training.record import read_metrics

TERMS = {"mlm", "sfr", "mim", "cml", "dfa", "ssm", "itc", "total"}
NUM_TRAINING = 9  # of write_prepared's studies


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder)
    splits = json.loads((folder / "build_manifest/splits.json").read_text())
    assert len(splits["train"]) == NUM_TRAINING
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "encoder"
    tiny_model(folder)
    return folder


def _studies(folder: Path) -> dict[int, set[str]]:
    """The studies of each step, all ranks together."""
    steps: dict[int, set[str]] = {}
    for line in (folder / "studies.jsonl").read_text().splitlines():
        step, study_ids = json.loads(line)
        steps.setdefault(step, set()).update(study_ids)
    return steps


def _losses(folder: Path) -> dict[int, dict[str, float]]:
    lines = read_metrics(folder / "run" / "metrics.jsonl")
    return {
        int(line["step"]): {k: v for k, v in line.items() if k.split("/")[-1] in TERMS}
        for line in lines
        if "pretrain/train/total" in line
    }


def test_another_number_of_ranks_goes_on_with_the_same_studies_and_losses(
    prepared: Path, model: Path, tmp_path: Path
) -> None:
    """One rank is cut off in step 5, two are in step 8, one ends: as if nothing had happened."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    ranks.watched(0, whole, str(prepared), str(model), str(whole / "run"))

    arguments = (str(prepared), str(model), str(cut / "run"))
    with pytest.raises(ranks.Cut):
        ranks.watched(0, cut, *arguments, "5")
    for process in ranks.start("watched", 2, cut, *arguments, "8"):
        assert "Cut" in process.communicate(timeout=240)[1]
    assert _studies(cut).keys() == {1, 2, 3, 4, 5, 6, 7}
    ranks.watched(0, cut, *arguments)

    trained = _studies(cut)
    assert trained == _studies(whole)  # also of the steps that were repeated
    # nine steps of four are four epochs of nine, and no cut lies at the end of one
    counts = Counter(study_id for step in range(1, 10) for study_id in trained[step])
    assert set(counts.values()) == {4}
    assert len(counts) == NUM_TRAINING

    found, expected = _losses(cut), _losses(whole)
    assert found.keys() == expected.keys() == set(range(1, 11))
    for step, losses in expected.items():  # measured: at most 1e-4
        assert found[step] == pytest.approx(losses, rel=1e-3), step
