"""Every command of docs/operations.md exists, or says why it was not run; the cheap ones run."""

import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import typer

from mg3d import paths
from mg3d.cli import app
from mg3d.params import load_params

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/operations.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
BACKUP = ROOT / "deploy/backup.py"


class Command(NamedTuple):
    """One line of a block; ``why`` it was not run, if so."""

    words: list[str]
    why: str

    def __str__(self) -> str:
        return " ".join(self.words)


def _commands() -> Iterator[Command]:
    for block in re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.strip():
                command, _, comment = line.partition(" # ")
                why = re.search(r"not run: (\S.*)", comment)
                yield Command(shlex.split(command), why[1] if why else "")


COMMANDS = list(_commands())
VERBS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
RUN_ELSEWHERE = {"dvc status": ".ci/run", "cp": "tests/test_docker.py"}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_what_a_block_says_exists_or_is_marked(command: Command) -> None:
    first, *rest = command.words
    if first == "make":
        assert re.search(rf"^{rest[0]}:", MAKEFILE, re.MULTILINE), "a target"
        dry = ["make", "--dry-run", "--assume-old", ".venv/installed", *rest]
        done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif first == "mg3d":
        verb = VERBS[rest[0]]
        options = {name for each in verb.params for name in each.opts}
        assert {word for word in rest if word.startswith("--")} <= options
    elif first == "python" and rest[0] == "-m":
        assert (ROOT / (rest[1].replace(".", "/") + ".py")).exists()
    elif first == "mlflow":
        help_ = [sys.executable, "-m", "mlflow", *rest[:2], "--help"]
        assert subprocess.run(help_, capture_output=True).returncode == 0
    elif first == "cp":
        assert (ROOT / rest[0]).exists()
    else:
        assert command.why or any(str(command).startswith(known) for known in RUN_ELSEWHERE)
    for word in rest:
        file = word.removeprefix("--from-env-file=")
        if re.match(r"(docker|deploy|params)/", file) and not file.endswith(".env"):
            assert (ROOT / file).exists(), file


def test_the_page_has_blocks_and_marks_are_reasons() -> None:
    assert len(COMMANDS) > 20
    assert all(len(command.why) > 8 for command in COMMANDS if command.why)
    assert {"make", "mg3d", "sbatch", "kubectl", "docker"} <= {each.words[0] for each in COMMANDS}


def test_commands_in_running_text_exist_too() -> None:
    for verb in re.findall(r"`mg3d (\w+)", PAGE):
        assert verb in VERBS, verb
    for target in re.findall(r"`make ([\w-]+)", PAGE):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    for module in re.findall(r"`python -m flows\.(\w+)", PAGE):
        assert (ROOT / f"flows/{module}.py").exists(), module
    for file in re.findall(
        r"`((?:tests|docs|docker|deploy|params|mg3d|benchmarks)/[\w./]+\.\w+)`", PAGE
    ):
        assert (ROOT / file).exists() or file.endswith(".env"), file


def test_servers_of_make_listen_on_this_machine_only() -> None:
    programs = (ROOT / "supervisord.conf").read_text()
    served = re.findall(r"^command = .*(?:mlflow server|server start).*", programs, re.MULTILINE)
    assert len(served) == 2
    for line in served:
        assert "--host 127.0.0.1" in line, line
    sources = [
        *(ROOT / "flows").glob("*.py"),
        *(ROOT / "mg3d").rglob("*.py"),
        ROOT / "supervisord.conf",
    ]
    assert not [path for path in sources if "0.0.0.0" in path.read_text()]


def _copy(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BACKUP, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_backup_of_a_database_in_use_is_one_moment_of_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "prefect").mkdir(parents=True)
    (runs / "pretrain-1/checkpoints").mkdir(parents=True)
    (runs / "pretrain-1/checkpoints/weights.safetensors").write_bytes(b"weights")
    writer = sqlite3.connect(runs / "prefect/prefect.db")
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE runs (name TEXT)")
    writer.execute("INSERT INTO runs VALUES ('finished')")
    writer.commit()  # lies in the write-ahead log, not yet in the file
    writer.execute("INSERT INTO runs VALUES ('half done')")
    done = _copy(runs, tmp_path / "backup")
    assert done.returncode == 0, done.stderr
    assert "1 databases, 1 other files" in done.stdout
    writer.close()
    for path in sorted(runs.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    runs.rmdir()

    assert _copy(tmp_path / "backup", runs).returncode == 0
    found = sqlite3.connect(runs / "prefect/prefect.db").execute("SELECT name FROM runs")
    assert found.fetchall() == [("finished",)]
    assert (runs / "pretrain-1/checkpoints/weights.safetensors").read_bytes() == b"weights"


def test_a_backup_overwrites_nothing_and_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "there").mkdir()
    there = _copy(tmp_path / "runs", tmp_path / "there")
    assert (there.returncode, "exists already: move it away" in there.stderr) == (2, True)
    absent = _copy(tmp_path / "absent", tmp_path / "new")
    assert (absent.returncode, "there is no folder" in absent.stderr) == (2, True)
    damaged = sqlite3.connect(tmp_path / "runs/mlflow.db")
    damaged.execute("CREATE TABLE runs (name TEXT)")
    damaged.executemany("INSERT INTO runs VALUES (?)", [("x" * 900,)] * 200)
    damaged.commit()
    damaged.close()
    file = tmp_path / "runs/mlflow.db"
    content = bytearray(file.read_bytes())
    content[4096 * 3 : 4096 * 9] = bytes(4096 * 6)
    file.write_bytes(content)
    broken = _copy(tmp_path / "runs", tmp_path / "new")
    assert broken.returncode != 0
    assert not (tmp_path / "new").exists(), "a backup has its name when it is whole"


def test_mlflow_comes_back_from_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mg3d import tracking

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = paths.RUNS / "a"
    with tracking.track(folder, "pretrain", load_params(ROOT / paths.PARAMS)) as opened:
        opened.on_metrics(3, {"pretrain/train/mim": 0.25})
        (tmp_path / "figure.txt").write_text("a figure")
        opened.log_file(tmp_path / "figure.txt")
        assert _copy(tmp_path / "runs", tmp_path / "backup").returncode == 0
    (tmp_path / "runs").rename(tmp_path / "lost")
    assert _copy(tmp_path / "backup", tmp_path / "runs").returncode == 0
    found = tracking.attach(folder)
    assert found.client.get_run(found.run_id).data.metrics == {"pretrain/train/mim": 0.25}
    local = found.client.download_artifacts(found.run_id, "figure.txt", str(tmp_path))
    assert Path(local).read_text() == "a figure"
