"""A PostgreSQL cluster of one's own, from Debian's packages, as an unprivileged user."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

USER = "postgres"


@dataclass(frozen=True)
class Cluster:
    """A running server on 127.0.0.1."""

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
def cluster(port: int, password: str) -> Iterator[Cluster]:
    """Start one that listens on 127.0.0.1 with a password; skip the test where there is none.

    It lies in a folder of its own: pytest's are closed to other users, and the server, which
    refuses to run as root, is one then.
    """
    if _folder() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    as_user: list[str] = []
    if os.getuid() == 0:
        if shutil.which("runuser") is None:
            pytest.skip("no runuser to leave root with")
        as_user = ["runuser", "-u", USER, "--"]
    with tempfile.TemporaryDirectory(prefix="mg3d-postgres-") as name:
        folder = Path(name)
        secret = folder / "password"
        secret.write_text(password)
        if as_user:
            shutil.chown(folder, USER)
            shutil.chown(secret, USER)
        yield from _running(folder, as_user, port, password)


def _running(folder: Path, as_user: list[str], port: int, password: str) -> Iterator[Cluster]:
    def do(*command: str | Path) -> None:
        subprocess.run([*as_user, *command], check=True, capture_output=True, cwd=folder)

    data, secret = folder / "data", folder / "password"
    login = ("-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}")
    do(_program("initdb"), "-D", data, *login, "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off"
    options += f" -c unix_socket_directories={folder}"
    control = (_program("pg_ctl"), "-D", data, "-w")
    do(*control, "-l", folder / "log", "-o", options, "start")
    try:
        yield Cluster(port, password)
    finally:
        do(*control, "-m", "immediate", "stop")


def _folder() -> Path | None:
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def _program(name: str) -> str:
    folder = _folder()
    assert folder is not None
    return str(folder / name)
