"""Prefect flows: order, retries, limits. Importing mg3d first switches telemetry off."""

import os

import mg3d  # noqa: F401

# A flow without a server starts one; Prefect's own patience of 20 s is short for a busy machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
