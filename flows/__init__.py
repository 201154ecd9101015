"""Prefect flows: order, retries, limits. Importing mg3d first switches telemetry off."""

import mg3d  # noqa: F401
