"""A real Prefect server, once; children that record how they were called."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="prefect-"))  # read on import

from prefect.testing.utilities import prefect_test_harness

from flows import child

ROOT = Path(__file__).parents[2]

CHILD = """
import json, os, sys, time
from pathlib import Path

def record(event):
    with Path("calls.jsonl").open("a") as calls:  # one short write: appends do not mix
        calls.write(json.dumps([event, *sys.argv[1:]]) + "\\n")

record("start")
verb = sys.argv[1]
failing = Path("failing").read_text().split() if Path("failing").exists() else []
if verb == "evaluate":
    name = sys.argv[sys.argv.index("--task") + 1]
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    print("scoring", name)
    time.sleep(60 if name in os.environ.get("ASLEEP", "").split() else 0.3)
    if name in failing:
        print("the scanner of", name, "is on fire", file=sys.stderr)
        sys.exit(3)
    print(out / "result.json")
elif verb == "pretrain":
    print("step 1 of 2, 3 s left")
    if verb in failing and "tried" not in failing:
        Path("failing").write_text("pretrain tried")
        sys.exit(1)
    print("runs/pretrain-0/checkpoints/step-000002")
else:
    print("result of", verb)
record("end")
"""


@dataclass(frozen=True)
class Children:
    """How the children of a flow were called, in the working folder of the test."""

    folder: Path

    def events(self) -> list[list[str]]:
        """``["start" or "end", verb, argument...]`` of each, in order; a failing one has no end."""
        calls = self.folder / "calls.jsonl"
        return (
            [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        )

    def started(self) -> list[list[str]]:
        """Argument lists, in the order of their start."""
        return [call for event, *call in self.events() if event == "start"]

    def fail(self, *names: str) -> None:
        """Let these fail from now on: a downstream task, or pretrain (once)."""
        (self.folder / "failing").write_text(" ".join(names))


@pytest.fixture(scope="session")
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def children(_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Children:
    """Flows run in ``tmp_path`` with the demo's params.yaml and children that only record."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(child, "MG3D", (sys.executable, str(script)))
    monkeypatch.setattr(child, "DVC", (sys.executable, str(script), "dvc"))
    return Children(tmp_path)
