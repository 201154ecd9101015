"""Published files, made here: read once as weights only, then a checkpoint like any other."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from mg3d import paths
from mg3d.params import Params, load_params
from mg3d.training.checkpoint import Coverage, latest, load_encoder, load_model
from mg3d.training.import_weights import import_weights

from .test_published import published

ROOT = Path(__file__).parents[2]
WIDTH = 4


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / paths.PARAMS)


def run(file: Path, out: Path, params: Params) -> tuple[Path, Any]:
    return import_weights(file, out, params.contract, params.model, params.objective)


def unet(width: int = WIDTH) -> dict[str, Tensor]:
    """Random weights under Models Genesis' names."""
    drawn = torch.Generator().manual_seed(0)
    tensors, before = {}, 1
    for depth, level in enumerate(("down_tr64", "down_tr128", "down_tr256", "down_tr512")):
        for convolution, after in enumerate((width * 2**depth, width * 2 ** (depth + 1))):
            stem = f"vision_encoder.{level}.ops.{convolution}"
            shape = (after, before, 3, 3, 3)
            tensors[f"{stem}.conv1.weight"] = torch.randn(shape, generator=drawn)
            tensors[f"{stem}.conv1.bias"] = torch.randn(after, generator=drawn)
            tensors[f"{stem}.bn1.weight"] = 1 + torch.rand(after, generator=drawn)
            tensors[f"{stem}.bn1.bias"] = torch.randn(after, generator=drawn)
            tensors[f"{stem}.bn1.running_mean"] = torch.randn(after, generator=drawn)
            tensors[f"{stem}.bn1.running_var"] = torch.rand(after, generator=drawn)
            tensors[f"{stem}.bn1.num_batches_tracked"] = torch.tensor(9)
            before = after
    return tensors


def genesis(tensors: dict[str, Tensor], volume: Tensor) -> Tensor:
    """The published U-Net, written out: convolution with bias, norm by the batch, ReLU."""
    x = volume
    for depth, level in enumerate(("down_tr64", "down_tr128", "down_tr256", "down_tr512")):
        for convolution in (0, 1):
            stem = f"vision_encoder.{level}.ops.{convolution}"
            x = F.conv3d(
                x, tensors[f"{stem}.conv1.weight"], tensors[f"{stem}.conv1.bias"], padding=1
            )
            scale, shift = tensors[f"{stem}.bn1.weight"], tensors[f"{stem}.bn1.bias"]
            x = F.relu(F.batch_norm(x, None, None, scale, shift, training=True))
        if depth < 3:
            x = F.max_pool3d(x, 2)
    return F.avg_pool3d(x, 4)


def test_a_swin_is_imported_whole_and_legacy_from_a_nested_pickle(
    params: Params, tmp_path: Path
) -> None:
    tensors = published(48)
    file = tmp_path / "published.pth"
    content = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save(
        {"epoch": 3, "state_dict": content, "optimizer": {"state": {0: torch.ones(2)}}}, file
    )
    checkpoint, found = run(file, tmp_path / "run", params)
    assert found.coverage == Coverage(loaded=126, missing=0, unexpected=0, mismatched=0)
    assert checkpoint == tmp_path / "run" / "checkpoints" / "step-000000"
    assert latest(checkpoint.parent) == checkpoint  # whole, with checksums
    encoder, coverage, contract = load_encoder(checkpoint)
    assert coverage.as_json() == {
        "loaded": 126, "missing": 0, "unexpected": 0, "mismatched": 0, "percent": 100.0,
    }  # fmt: skip
    assert contract == params.contract
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, tensors[f"vision_encoder.{name}"]), name
    merging = type(encoder.layers1[0].downsample).__name__  # type: ignore[union-attr,index]
    assert merging == "LegacyPatchMerging"
    with pytest.raises(ValueError, match=r"holds a vision encoder and no text side \(126 loaded"):
        load_model(checkpoint)


def test_a_unet_computes_what_the_published_one_does(params: Params, tmp_path: Path) -> None:
    tensors = unet()
    torch.save(tensors, tmp_path / "unet.pt")
    checkpoint, found = run(tmp_path / "unet.pt", tmp_path / "run", params)
    assert (found.coverage.loaded, found.coverage.missing) == (24, 0)
    assert found.coverage.unexpected == len(found.beside) == 8 * 4
    encoder, _, _ = load_encoder(checkpoint)
    volume = torch.rand(1, 1, 32, 64, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.last_map(volume), genesis(tensors, volume), atol=2e-4, rtol=2e-4
        )


class Code:
    """Unpickling it would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_with_code_is_refused_and_does_not_run(params: Params, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"state_dict": unet(), "args": Code(marker)}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"holds more than weights, which could run code"):
        run(tmp_path / "evil.pt", tmp_path / "run", params)
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


def test_damaged_misnamed_and_other_files_are_refused(params: Params, tmp_path: Path) -> None:
    good = tmp_path / "good.pt"
    torch.save(unet(), good)
    cut = tmp_path / "cut.pt"
    for length in (0, 10, good.stat().st_size // 2, good.stat().st_size - 30):
        cut.write_bytes(good.read_bytes()[:length])
        with pytest.raises(ValueError, match=r"cut.pt is damaged"):
            run(cut, tmp_path / "run", params)
    misnamed = {name.replace("vision_encoder.", "encoder."): t for name, t in unet().items()}
    torch.save(misnamed, cut)
    with pytest.raises(ValueError, match=r"an encoder under 'encoder.': published MG-3D encoders"):
        run(cut, tmp_path / "run", params)
    torch.save({name: t for name, t in unet().items() if "down_tr512" not in name}, cut)
    with pytest.raises(ValueError, match=r"covers 75% of 3D U-Net .*95% are needed"):
        run(cut, tmp_path / "run", params)
    with pytest.raises(ValueError, match=r"no file .*absent.pt"):
        run(tmp_path / "absent.pt", tmp_path / "run", params)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_weights_is_not_overwritten(params: Params, tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file(unet(), one)
    save_file(unet(2 * WIDTH), other)
    first, _ = run(one, tmp_path / "run", params)
    again, _ = run(one, tmp_path / "run", params)
    assert again == first
    with pytest.raises(ValueError, match=r"step-000000 holds other weights"):
        run(other, tmp_path / "run", params)


def test_what_is_imported_is_evaluated_and_registered_like_any_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mg3d import cli
    from mg3d.finetuning.encoders import starting_encoder
    from mg3d.params import Finetune
    from mg3d.registry import encoder

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tensors = unet()
    save_file(tensors, "published.safetensors")
    out = Path("runs/imported")
    cli.import_weights(Path("published.safetensors"), out, ROOT / paths.PARAMS)
    params = load_params(out / paths.RUN_PARAMS)
    assert (params.model.vision.name, params.model.vision.embed_dim) == ("unet3d", WIDTH)
    checkpoint = latest(out / paths.CHECKPOINTS)
    assert checkpoint is not None
    of_checkpoint, _, provenance = starting_encoder(checkpoint, Finetune())
    assert provenance["encoder_coverage"]["percent"] == 100.0
    uri = encoder.register(out, params.register_)
    volume = torch.rand(1, 1, *params.contract.shape_voxels)
    with torch.no_grad():
        expected = of_checkpoint.features(volume).numpy()
    assert encoder.load_registered(uri).embed(volume.numpy()) == pytest.approx(expected, abs=1e-5)
