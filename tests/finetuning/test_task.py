from pathlib import Path

from mg3d.finetuning.task import Scores, data_digest, summarise
from mg3d.metrics.bootstrap import Estimate, unavailable


def test_data_digest_sees_names_sizes_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "labels.csv"
    file.write_text("1")
    first = data_digest(tmp_path)
    file.touch()
    assert data_digest(tmp_path) == first
    file.write_text("2")
    second = data_digest(tmp_path)
    file.rename(tmp_path / "a" / "other.csv")
    assert len({first, second, data_digest(tmp_path)}) == 3


def test_first_available_metric_heads_and_missing_is_null_with_reason() -> None:
    scores = Scores(
        metrics={"severe": unavailable("2 positive"), "covid": Estimate(0.8, (0.6, 0.9))},
        nulls={"prevalence": {"severe": unavailable("2 positive"), "covid": Estimate(0.5)}},
    )
    result = summarise(("severe", "covid"), scores)
    assert result["headline"] == {
        "name": "covid", "value": 0.8, "interval": [0.6, 0.9], "null": {"prevalence": 0.5},
    }  # fmt: skip
    assert result["metrics"]["severe"] == {"value": None, "interval": None, "reason": "2 positive"}
    assert result["unavailable"] == {"severe": "2 positive"}
    nothing = summarise(("severe",), scores)["headline"]
    assert nothing["value"] is None
    assert nothing["reason"] == "2 positive"
