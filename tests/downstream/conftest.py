"""One small checkpoint for all tasks: the tiny model, written as a training writes it."""

from pathlib import Path

import pytest

from mg3d.params import Model, Objective, TextEncoder, VisionEncoder, VolumeContract


@pytest.fixture(scope="session")
def contract() -> VolumeContract:
    return VolumeContract(spacing_mm=(6.0, 6.0, 6.0), shape_voxels=(32, 32, 32))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, contract: VolumeContract) -> Path:
    """A dual encoder, and nothing in which the modalities meet."""
    return _write(tmp_path_factory.mktemp("checkpoints"), contract, "itc")


@pytest.fixture(scope="session")
def fusing_checkpoint(tmp_path_factory: pytest.TempPathFactory, contract: VolumeContract) -> Path:
    """A dual encoder, and the fusion layers of DFA."""
    return _write(tmp_path_factory.mktemp("fusing_checkpoints"), contract, "itc", "dfa")


def _write(folder: Path, contract: VolumeContract, *terms: str) -> Path:
    import torch

    from mg3d.fingerprint import Fingerprint
    from mg3d.models.mg3d import MG3D
    from mg3d.training.checkpoint import save

    torch.manual_seed(0)
    vision = VisionEncoder(
        embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_voxels=2
    )
    params = Model(vision=vision, text=TextEncoder(max_tokens=64))
    weights = ("mlm", "sfr", "mim", "cml", "dfa", "ssm", "itc")
    objective = Objective(**{f"{term}_weight": float(term in terms) for term in weights})
    model = MG3D(params, objective)
    return save(
        folder,
        step=1,
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        contract=contract,
        model_params=params,
        objective_params=objective,
        fingerprint=Fingerprint({}),
        rng=torch.zeros(1, 8, dtype=torch.uint8),
        position={},
        num_kept=2,
    )
