"""Keyed pseudonyms: the only way an identifier from a hospital enters a path, a log or a table."""

import hashlib
import hmac
import os

DEMO_KEY = "mg3d-demo"


def pseudonym(kind: str, value: str) -> str:
    """``kind`` + twelve hex digits of HMAC-SHA256(key, kind and value), e.g. ``patient-3f5a…``.

    The key is the environment variable ``MG3D_ID_KEY`` and stays outside the repository; without it
    the public demo key is used, which protects nobody. Same key, same value: same pseudonym, so
    DICOM headers and report exports still join.
    """
    key = os.environ.get("MG3D_ID_KEY", DEMO_KEY).encode()
    message = f"{kind}\x00{value.strip()}".encode()
    return f"{kind}-{hmac.new(key, message, hashlib.sha256).hexdigest()[:12]}"
