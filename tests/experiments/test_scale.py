"""Sizes of data and encoder: the cells, the curve of each width, and what is refused."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mg3d import paths, tracking
from mg3d.experiments.scale import cells, scale
from mg3d.params import Params, Scale, load_params

ROOT = Path(__file__).parents[2]


def test_cells_are_all_sizes_for_equally_many_steps() -> None:
    params = load_params(ROOT / paths.PARAMS)
    planned = cells(params)
    assert set(planned) == {(d, f, 0) for d in (6, 12, 24) for f in (0.25, 0.5, 1.0)}
    assert {c.params.pretrain.num_steps for c in planned.values()} == {params.scale.num_steps}
    for (embed_dim, fraction, _), cell in planned.items():
        assert cell.params.model.vision.embed_dim == embed_dim
        assert cell.params.pretrain.train_fraction == fraction
        assert cell.params.objective == params.objective


def test_a_share_that_cannot_fill_a_batch_is_refused_before_anything_runs(
    tiny: tuple[Path, Params], trained: list[str], tmp_path: Path
) -> None:
    prepared, params = tiny
    small = params.model_copy(update={"scale": Scale(train_fractions=(0.1, 1.0), embed_dims=(4,))})
    with pytest.raises(ValueError, match=r"train_fractions 0.1 of \d+ training studies is 1, .* 4"):
        scale(prepared, tmp_path / "runs", small)
    assert trained == []
    assert not (tmp_path / "runs").exists()


class Untracked:
    """An MLflow run without its seconds."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_a_small_table_with_its_curves(
    tiny: tuple[Path, Params], trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, params = tiny
    monkeypatch.setattr(tracking, "track", lambda *_, **__: nullcontext(Untracked()))
    file = scale(prepared, tmp_path / "runs", params)
    result = json.loads(file.read_text())
    assert [(row["embed_dim"], row["train_fraction"]) for row in result["rows"]] == [
        (4, 0.5), (4, 1.0), (8, 0.5), (8, 1.0)
    ]  # fmt: skip
    small, large = result["rows"][0], result["rows"][2]
    assert large["encoder_parameters"] > 3 * small["encoder_parameters"]
    assert result["rows"][1]["num_train"] == pytest.approx(2 * small["num_train"], abs=1)
    half = [f for f in trained if load_params(Path(f)).pretrain.train_fraction == 0.5]
    ledger = json.loads((Path(half[0]).parent / paths.LEDGER_SUMMARY).read_text())
    assert ledger["reasons"]["not_chosen"] == result["rows"][1]["num_train"] - small["num_train"]
    assert len(result["curves"]) == 6
    for curve in result["curves"]:
        assert "two parameters" in curve["note"]
        assert curve["residuals"] == pytest.approx([0, 0], abs=1e-4)  # two points, two parameters
    text = (file.parent / "table.md").read_text()
    assert result["curves"][0]["formula"] in text
    assert (file.parent / "table.csv").read_text().startswith("embed_dim,encoder_parameters,")
    assert (file.parent / paths.FIGURES / "scaling.png").exists()
    num = len(trained)
    assert scale(prepared, tmp_path / "runs", params) == file
    assert len(trained) == num == 4
