"""MG-3D: vision-language pre-training of a 3D encoder on chest CT and reports (arXiv 2412.05876).

Importing the package switches off the analytics and telemetry of every tool it carries; no
import of those tools may come first (``flows/__init__.py`` imports this package for that reason).
"""

import os

#: Makefile and Dockerfile repeat these for the servers, which do not import this package.
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
for _name, _value in (TELEMETRY_OFF | _QUIET).items():
    os.environ.setdefault(_name, _value)

__version__ = "0.1.0"
