# Two commands do everything: `make demo` and `make test`. The rest are doors and habits.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PYTEST_ARGS ?=

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PREFECT_HOME ?= $(CURDIR)/runs/prefect
export OMP_NUM_THREADS ?= 1
export PYTHONUNBUFFERED = 1
# mg3d/__init__.py sets these too, but tools that you start by hand do not import it
export DO_NOT_TRACK = true
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export MLFLOW_DISABLE_TELEMETRY = true
export DVC_NO_ANALYTICS = 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test lint up down clean

demo: .venv/installed data
	python -m flows.pipeline
	@printf '\nNext:\n  %s\n  %s\n' \
	  'make up             # Prefect and MLflow in the browser; says where to click' \
	  '.venv/bin/mg3d show models:/mg3d-encoder@candidate'

test: .venv/installed
	python -m pytest $(PYTEST_ARGS)

lint: .venv/installed
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	hadolint docker/Dockerfile

# torch is named first and exactly: with a range, pip may choose a CUDA build of several GB
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	pip install --quiet --constraint constraints.txt $(shell grep '^torch==' constraints.txt)
	pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@

# Laid out once, then checked against data.dvc. Yours, if you put your own data here.
data: | .venv/installed
	mg3d write_cohort
	@! dvc status data.dvc | grep modified || \
	  { echo "data/ is not what data.dvc pins; if you meant that: dvc add data"; exit 1; }

# Prefect's server, MLflow's and a worker for the runs that are started there; loopback only
up: .venv/installed
	python -m flows.servers up

down: .venv/installed
	python -m flows.servers down

clean:
	rm -rf runs prepared .data.partial
