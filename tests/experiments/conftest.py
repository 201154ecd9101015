"""A tiny prepared folder, its params, and ranks that run in this process."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tiny_prepared import CONTRACT, OBJECTIVE, PRETRAIN, tiny_model, write_prepared

from mg3d import launch, paths
from mg3d.params import Ablate, Params, Scale, load_params

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """prepared/ with a handful of studies, and a params file's tree of two steps."""
    folder = tmp_path_factory.mktemp("tiny")
    write_prepared(folder / "prepared")
    params = load_params(ROOT / paths.PARAMS).model_copy(
        update={
            "contract": CONTRACT,
            "model": tiny_model(folder / "text"),
            "objective": OBJECTIVE,
            "pretrain": PRETRAIN.model_copy(update={"num_steps": 4, "validate_every_steps": 2}),
            "ablate": Ablate(seeds=(0, 1), num_steps=2, num_bootstrap=100),
            "scale": Scale(train_fractions=(0.5, 1.0), embed_dims=(4, 8), num_steps=1,
                           num_bootstrap=100),
        }
    )  # fmt: skip
    return folder / "prepared", params


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """In a folder of its own, ranks run here; the params file of each run that was started."""
    from mg3d.training.pretrain import pretrain

    started: list[str] = []

    def here(command: list[str], num_ranks: int, num_threads: int, **_: object) -> str:
        _, prepared, _, file, _, _ = command
        params = load_params(Path(file))
        started.append(file)
        sections = (params.contract, params.model, params.objective, params.pretrain)
        pretrain(Path(prepared), Path(file).parent, *sections, lambda *_: None)
        return ""

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(launch, "torchrun", here)
    return started
