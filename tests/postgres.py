"""A PostgreSQL cluster of one's own, from Debian's packages, as an unprivileged user."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

USER = "postgres"


@dataclass(frozen=True)
class Cluster:
    """A running server on 127.0.0.1."""

    folder: Path
    port: int
    password: str

    def run(self, program: str, *arguments: str | Path, stdin: str | None = None) -> str:
        """Run one of PostgreSQL's programs on this cluster; its output."""
        environment = os.environ | {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": USER,
            "PGPASSWORD": self.password,
        }
        command = [_program(program), *arguments]
        done = subprocess.run(
            command, env=environment, input=stdin, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def cluster(folder: Path, port: int, password: str) -> Iterator[Cluster]:
    """Start one that listens on 127.0.0.1 with a password; skip the test where there is none."""
    if not _installed():
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder.mkdir(parents=True)
    secret = folder / "password"
    secret.write_text(password)
    as_user: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        if shutil.which("runuser") is None:
            pytest.skip("no runuser to leave root with")
        as_user = ["runuser", "-u", USER, "--"]
        for path in (folder, secret):
            shutil.chown(path, USER)
        for parent in [folder, *folder.parents]:
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)  # pytest's folders are closed
    data = folder / "data"
    initdb = [
        _program("initdb"),
        "-D",
        data,
        "-U",
        USER,
        "--auth=scram-sha-256",
        f"--pwfile={secret}",
    ]
    subprocess.run([*as_user, *initdb, "--no-sync"], check=True, capture_output=True, cwd=folder)
    options = (
        f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    )
    control = [*as_user, _program("pg_ctl"), "-D", data, "-w"]
    log = folder / "log"
    subprocess.run(
        [*control, "-l", log, "-o", options, "start"], check=True, capture_output=True, cwd=folder
    )
    try:
        yield Cluster(folder, port, password)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], capture_output=True, cwd=folder)


def _installed() -> bool:
    return _folder() is not None


def _folder() -> Path | None:
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def _program(name: str) -> str:
    folder = _folder()
    assert folder is not None
    return str(folder / name)
