"""What a run was made from: params sections, data, code, libraries. Equal fingerprints, equal run.

A fingerprint is a small tree of JSON values, so two of them can say *what* differs. It decides
whether a finished run may be reused and whether an interrupted one may be resumed. Cheap on
purpose: it hashes a few tables and sources, never the volumes (the manifest holds their digests).
"""

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mg3d import paths
from mg3d.params import Model, Objective, Pretrain, VolumeContract

PACKAGE = Path(__file__).parent
PRETRAIN_CODE = (
    *("data/pairs.py", "data/tokens.py", "data/volumes.py", "data/embeddings.py"),
    *("models", "objectives", "training"),
)
PRETRAIN_DATA = (
    Path("build_manifest") / paths.MANIFEST,
    Path("build_manifest") / paths.SPLITS,
    Path("segment_sentences") / paths.SENTENCE_TABLE,
    Path("embed_sentences") / paths.SENTENCE_MEANS_TABLE,  # with the digests of the means
)
#: How work is laid out: it changes rounding, not what is computed, so a run may go on otherwise.
PRETRAIN_LAYOUT = {
    "num_ranks",
    "num_threads_per_rank",
    "accumulate_steps",
    "compile",
    "sharding",
}
LIBRARIES = ("torch", "monai", "transformers")


@dataclass(frozen=True)
class Fingerprint:
    """A tree of JSON values, e.g. ``{"pretrain": {"seed": 0, ...}, "code": {"models": ...}}``."""

    parts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Sixteen hex digits of the canonical JSON."""
        return _digest(self.parts)

    def changes(self, new: "Fingerprint") -> list[str]:
        """One line per differing leaf, e.g. ``pretrain.learning_rate: 0.001 -> 0.01``."""
        return _changes(self.parts, new.parts)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code(parts: Iterable[str], package: Path = PACKAGE) -> dict[str, str]:
    """Digest of each file or folder of ``parts`` in ``package``: names and bytes of its *.py."""
    digests = {}
    for part in parts:
        found = sorted((package / part).rglob("*.py")) or [package / part]
        digests[part] = _digest({str(f.relative_to(package)): file_sha256(f) for f in found})
    return digests


def data(prepared: Path, files: Iterable[Path]) -> dict[str, str]:
    """Digest of each table under ``prepared``. Raises ValueError when one is missing."""
    digests = {}
    for file in files:
        if not (prepared / file).exists():
            raise ValueError(f"no {file} under {prepared}: run `dvc repro` first")
        digests[str(file)] = file_sha256(prepared / file)[:16]
    return digests


def libraries(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Installed versions, read from package metadata: nothing is imported."""
    found = {}
    for name in names:
        try:
            found[name] = version(name).split("+")[0]  # the same release on CPU and CUDA
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def git_commit() -> str:
    """HEAD, with ``+changes`` if the tree is dirty; ``unknown`` outside a checkout."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return "unknown"
    changes = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True
    ).stdout
    return head.stdout.strip() + ("+changes" if changes.strip() else "")


def pretrain_fingerprint(
    prepared: Path,
    contract: VolumeContract,
    model: Model,
    objective: Objective,
    params: Pretrain,
) -> Fingerprint:
    """All that a pre-training depends on, save how it is laid out on ranks and threads.

    Raises ValueError if ``prepared`` is not there.
    """
    sections = {"contract": contract, "model": model, "objective": objective}
    parts = {
        **{name: section.model_dump(mode="json") for name, section in sections.items()},
        "pretrain": params.model_dump(mode="json", exclude=PRETRAIN_LAYOUT),
        "data": data(prepared, PRETRAIN_DATA),
        "code": code(PRETRAIN_CODE),
        "libraries": libraries(),
    }
    return Fingerprint(parts)


def _digest(tree: Mapping[str, Any]) -> str:
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += _changes(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines
