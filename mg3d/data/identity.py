"""Keyed pseudonyms: the only way an identifier from a hospital enters a path, a log or a table.

The key is a secret of the data's owner and stays outside the repository: the environment variable
``MG3D_ID_KEY`` holds it, or ``MG3D_ID_KEY_FILE`` names the file that does. Without either the demo
key is used, which is public: anyone can list all patient numbers of a hospital and find each one's
pseudonym, so it protects nobody. A new key makes new ids: run `dvc repro -f` once.
"""

import hashlib
import hmac
import os
from functools import lru_cache
from pathlib import Path

from mg3d import paths

DEMO_KEY = "mg3d-demo"
MIN_KEY_BYTES = 16


def has_secret_key() -> bool:
    """Whether a key other than the public one is in use. Raises ValueError like `pseudonym`."""
    return _key() != DEMO_KEY.encode()


def _key() -> bytes:
    named = os.environ.get("MG3D_ID_KEY_FILE")
    if named and "MG3D_ID_KEY" in os.environ:
        raise ValueError("MG3D_ID_KEY and MG3D_ID_KEY_FILE are both set: unset one")
    if named:
        return _read_key(Path(named))
    return os.environ.get("MG3D_ID_KEY", DEMO_KEY).encode()


@lru_cache
def _read_key(path: Path) -> bytes:
    if path.resolve().is_relative_to(paths.ROOT.resolve()):
        raise ValueError(f"MG3D_ID_KEY_FILE {path} lies in the repository: move it out of it")
    if not path.is_file():
        raise ValueError(f"MG3D_ID_KEY_FILE {path} is no file: write the key into it")
    key = path.read_bytes().strip()
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(
            f"the key in MG3D_ID_KEY_FILE has {len(key)} bytes: use {MIN_KEY_BYTES} or more, e.g. "
            "of `openssl rand -hex 32`"
        )
    return key


def pseudonym(kind: str, value: str) -> str:
    """``kind`` + twelve hex digits of HMAC-SHA256(key, kind and value), e.g. ``patient-3f5a…``.

    Same key, same value: same pseudonym, so DICOM headers and report exports still join. Raises
    ValueError if the key file is absent, too short or inside the repository.
    """
    message = f"{kind}\x00{value.strip()}".encode()
    return f"{kind}-{hmac.new(_key(), message, hashlib.sha256).hexdigest()[:12]}"
