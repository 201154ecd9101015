"""Prefect flows: order, retries, limits. Importing mg3d first switches telemetry off."""

import os
from pathlib import Path

import mg3d  # noqa: F401

# A flow without a server starts one; Prefect's own patience of 20 s is short for a busy machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
if "PREFECT_HOME" in os.environ:  # Prefect makes the folder but not its parents, e.g. runs/
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
