"""The verbs at the edge: what they print, and that they ask the registry behind the variable."""

import json
from pathlib import Path

from typer.testing import CliRunner

from mg3d.cli import app

from .conftest import ROOT, World


def test_register_predict_promote_lineage_by_the_command_line(
    world: World, chest: Path, tmp_path: Path
) -> None:
    from mg3d.params import save_params

    save_params(world.params, tmp_path / "params.yaml")
    call = CliRunner().invoke
    options = ["--params", str(tmp_path / "params.yaml")]
    registered = call(app, ["register", str(world.run), *options], catch_exceptions=False)
    uris = [line for line in registered.stdout.splitlines() if line.startswith("models:/")]
    assert uris[-1].startswith("models:/mg3d-encoder/")  # what a flow takes for the result
    model = next(uri for uri in uris if "stoic2021" in uri)
    name, version = model.removeprefix("models:/").split("/")

    promoted = call(app, ["promote", name, version], catch_exceptions=False)
    assert f"{name}: champion is version {version}" in promoted.stdout
    model = f"models:/{name}@champion"
    arguments = ["predict", str(chest), "--model", model, "--out", str(tmp_path / "out")]
    predicted = call(app, arguments, catch_exceptions=False)
    answer = Path(predicted.stdout.split()[-1])
    assert json.loads(answer.read_text())["model"]["uri"] == f"models:/{name}/{version}"
    found = json.loads(call(app, ["lineage", model], catch_exceptions=False).stdout)
    assert found["runs"][0]["cases"]["train"] == ["case-1"]
    refused = call(app, ["predict", str(ROOT / "README.md"), "--model", model])
    assert isinstance(refused.exception, ValueError)
    assert "is refused: unreadable: not a NIfTI file" in str(refused.exception)
