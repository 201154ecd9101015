"""Two nodes of one rank each, on loopback, are two ranks of one node; mistakes are named."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_prepared import CONTRACT, OBJECTIVE, PRETRAIN, tiny_model, write_prepared

from mg3d import launch, paths
from mg3d.params import load_params, save_params
from mg3d.training.record import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the nodes share: prepared/ and a params file of two ranks."""
    folder = tmp_path_factory.mktemp("shared")
    write_prepared(folder / "prepared")
    changes = {"num_ranks": 2, "num_steps": 4, "validate_every_steps": 2}
    sections = {
        "contract": CONTRACT,
        "model": tiny_model(folder / "text"),
        "objective": OBJECTIVE,
        "pretrain": PRETRAIN.model_copy(update=changes | {"checkpoint_every_steps": 2}),
    }
    save_params(load_params(ROOT / paths.PARAMS).model_copy(update=sections), folder / paths.PARAMS)
    return folder


def _start(project: Path, out: str, *options: str) -> subprocess.Popen[str]:
    store = f"sqlite:///{project / out}.db"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-m", "mg3d.cli", "pretrain", "--out", out, *options]
    return subprocess.Popen(
        command, cwd=project, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_nodes_train_as_one_does(project: Path) -> None:
    meeting = f"127.0.0.1:{_free_port()}"
    nodes = [
        _start(project, "two", "--nnodes", "2", "--node-rank", rank, "--rdzv-endpoint", meeting)
        for rank in ("1", "0")
    ]
    try:
        outputs = [node.communicate(timeout=800)[0] for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # ends its ranks too
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    alone = _start(project, "one")
    output = alone.communicate(timeout=800)[0]
    assert alone.returncode == 0, output

    (one,), (two,) = ((project / out).glob("pretrain-*") for out in ("one", "two"))
    assert {words.splitlines()[-1] for words in outputs} == {
        str((two / paths.CHECKPOINTS / "step-000004").relative_to(project))
    }
    # each node shows the lines of its own rank
    shown = [set(re.findall(r"^rank (\d): ", words, re.MULTILINE)) for words in outputs]
    assert not shown[0] & shown[1]

    losses = [
        [{k: v for k, v in line.items() if "per_s" not in k} for line in read_metrics(file)]
        for file in (one / "metrics.jsonl", two / "metrics.jsonl")
    ]
    assert len(losses[0]) >= 4
    assert losses[0] == losses[1]
    weights = [
        load_file(run / paths.CHECKPOINTS / "step-000004" / paths.WEIGHTS) for run in (one, two)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    ids = {file.parent for file in (project / "two").rglob(paths.MLFLOW_RUN_ID)}
    assert ids == {two, two / paths.PIPELINE}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nnodes", "2"), "rendezvous endpoint '' of 2 nodes: use HOST:PORT of node 0"),
        (("--nnodes", "2", "--rdzv-endpoint", "host"), "use HOST:PORT of node 0"),
        (("--node-rank", "1"), "node rank 1 of 1 nodes: give each node its own of 0 to 0"),
        (
            ("--nnodes", "3", "--rdzv-endpoint", "host:1", "--node-rank", "2"),
            "2 ranks on 3 nodes: make pretrain.num_ranks a multiple of 3",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    project: Path, options: tuple[str, ...], message: str
) -> None:
    node = _start(project, "none", *options)
    output = node.communicate(timeout=120)[0]
    assert node.returncode == 2, output
    assert message in output
    assert "Traceback" not in output


def test_one_node_needs_no_meeting_point() -> None:
    assert launch.ONE_NODE.options == ["--standalone"]
    options = launch.Nodes(4, 3, "node0:29400").options
    assert {"--nnodes=4", "--rdzv-endpoint=node0:29400", "--rdzv-conf=is_host=false"} < set(options)
