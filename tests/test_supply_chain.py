"""What we stand on: pinned, under licences that are looked at, listed; and no secret in git."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/supply_chain.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: SPDX names of licences that ask for no more than a notice, or for source of changed files (MPL).
ALLOWED = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python"),
    *("ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib", "ZPL-2.1"),
    "Apache-2.0 WITH LLVM-exception",
}
#: How packages without an SPDX expression say it.
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "FreeBSD": "BSD-2-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Zope Public License": "ZPL-2.1",
}
#: Run-time dependencies that were looked at one by one: docs/supply_chain.md says what was found.
LOOKED_AT = {
    *("asyncssh", "grandalf", "huey", "psycopg2-binary", "pycocoevalcap", "pygit2"),
    *("pylibjpeg-libjpeg", "skops", "supervisor", "text-unidecode"),
}


@cache
def runtime() -> dict[str, importlib.metadata.Distribution]:
    """All that `pip install mg3d[server]` brings on this platform, by canonical name."""
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["server"]]
    queue = [Requirement(line) for line in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    found: dict[str, importlib.metadata.Distribution] = {}
    while queue:
        needed = queue.pop()
        key = canonicalize_name(needed.name), frozenset(needed.extras)
        if key in seen:
            continue
        seen.add(key)
        found[key[0]] = importlib.metadata.distribution(needed.name)
        for line in found[key[0]].requires or ():
            further = Requirement(line)
            extras = needed.extras or {""}
            if not further.marker or any(further.marker.evaluate({"extra": e}) for e in extras):
                queue.append(further)
    return found


def licences(name: str) -> set[frozenset[str]]:
    """Alternatives (OR), each a set of licences that hold together (AND)."""
    metadata = runtime()[name].metadata
    if expression := metadata.get("License-Expression"):
        words = re.sub(r"[()]", "", expression)
        return {frozenset(part.split(" AND ")) for part in words.split(" OR ")}
    classified = [
        line.split(" :: ")[-1]
        for line in metadata.get_all("Classifier") or ()
        if line.startswith("License ::")
    ]
    stated = [each for each in classified if each != "OSI Approved"] or [
        metadata.get("License") or "none"
    ]
    if len(stated) == 1 and (" OR " in stated[0] or " AND " in stated[0]):
        return {frozenset(part.split(" AND ")) for part in stated[0].split(" OR ")}
    return {frozenset([SPELLINGS.get(each, each)]) for each in stated}


def test_every_licence_is_allowed_or_was_looked_at() -> None:
    assert len(runtime()) > 150
    strange = {
        name: sorted(map(sorted, licences(name)))
        for name in runtime()
        if not any(together <= ALLOWED for together in licences(name))
    }
    assert set(strange) == LOOKED_AT, strange


def test_the_page_tells_what_was_found_of_each() -> None:
    for name in LOOKED_AT:
        assert re.search(rf"^\| `{name}` \|", PAGE, re.MULTILINE), name
    for name in re.findall(r"^\| `([\w.-]+)` \| \d", PAGE, re.MULTILINE):
        assert name in LOOKED_AT, f"{name} is no longer a question: take it off the page"


def test_every_runtime_dependency_is_pinned_and_installed_as_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for name, found in runtime().items():
        assert found.version.split("+")[0] == pins.get(name), f"{name} {found.version}"


def test_the_list_of_materials_holds_every_runtime_dependency(tmp_path: Path) -> None:
    target = next(
        line.strip()
        for line in (ROOT / "Makefile").read_text().split("\nsbom:")[1].splitlines()
        if "cyclonedx-py" in line
    )
    command = target.replace("runs/sbom.json", str(tmp_path / "sbom.json"))
    command = command.replace(".venv/bin/python", sys.executable)
    command = command.replace("cyclonedx-py", f"{sys.executable} -m cyclonedx_py", 1)
    subprocess.run(command.split(), cwd=ROOT, check=True, capture_output=True)
    listed = {
        (canonicalize_name(component["name"]), component["version"])
        for component in json.loads((tmp_path / "sbom.json").read_text())["components"]
    }
    assert {(name, found.version) for name, found in runtime().items()} <= listed


SECRETS = {
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "an AWS key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}"),
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{30,}"),
    "a Slack token": re.compile(rb"\bxox[abpr]-[A-Za-z0-9-]{10,}"),
    "a Prefect key": re.compile(rb"\bpn[ub]_[A-Za-z0-9]{30,}"),
    "a password in a URL": re.compile(rb"\b[a-z][a-z0-9+.-]*://[\w.-]+:[^\s@/${}<>\"'`]+@[\w.-]+"),
    "an assigned secret": re.compile(
        rb"(?im)^[ \t]*(?:export )?[A-Z_]*(?:PASSWORD|SECRET|TOKEN|ID_KEY|AUTH_STRING)[A-Z_]*"
        rb"[ \t]*[:=][ \t]*"
        rb"(?!\$|\"?\$\{|\.\.\.|none|null|\{)['\"]?[A-Za-z0-9+/:_-]{6,}['\"]?[ \t]*$"
    ),
}
PLANTED = {
    "a private key": b"-----BEGIN RSA PRIVATE " + b"KEY-----",
    "an AWS key": b"AKIA" + b"Q" * 16,
    "a GitHub token": b"ghp_" + b"q" * 36,
    "a Hugging Face token": b"hf_" + b"q" * 34,
    "a Slack token": b"xoxb-" + b"1" * 12,
    "a Prefect key": b"pnu_" + b"q" * 36,
    "a password in a URL": b"postgresql://admin:" + b"hunter2@host/db",
    "an assigned secret": b"  POSTGRES_PASSWORD: " + b"hunter2hunter2",
}


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_in_git(kind: str) -> None:
    assert SECRETS[kind].search(PLANTED[kind]), "the pattern finds one"
    files = [path for path in _tracked() if path.is_file()]
    if kind == "an assigned secret":  # Python assigns words to names for other reasons
        files = [path for path in files if path.suffix != ".py"]
    assert not [path for path in files if SECRETS[kind].search(path.read_bytes())]


def test_no_file_that_holds_secrets_is_tracked() -> None:
    names = {path.name for path in _tracked()}
    assert not names & {".env", "secrets.env", "id_rsa", "credentials", ".netrc", ".pypirc"}
    ignored = ["docker/.env", "deploy/kubernetes/secrets.env"]
    done = subprocess.run(
        ["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ignored
