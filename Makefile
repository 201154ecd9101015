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

.PHONY: demo test lint up down clean canary sbom backup restore

demo: .venv/installed data
	python -m flows.pipeline
	@printf '\nNext:\n  %s\n  %s\n' \
	  'make up             # Prefect and MLflow in the browser; says where to click' \
	  '.venv/bin/mg3d show models:/mg3d-encoder@candidate'

test: .venv/installed
	python -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

lint: .venv/installed
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	hadolint docker/Dockerfile
	yamllint --strict --config-file deploy/yamllint.yaml docker deploy
	check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose*.yaml
	kubernetes-validate --quiet --strict deploy/kubernetes/*.yaml
	shellcheck deploy/slurm/*.sbatch

# torch is named first and exactly: with a range, pip may choose a CUDA build of several GB
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	pip install --quiet --constraint constraints.txt $(shell grep '^torch==' constraints.txt)
	pip install --quiet --constraint constraints.txt --editable '.[test,lint,server]'
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

# Identifiers of data/ in anything that a run left behind: none, or exit code 1.
canary: .venv/installed
	python tests/canary.py data prepared runs .dvc/tmp dvc.lock

# CycloneDX list of all that .venv holds, with versions and licences
sbom: .venv/installed
	mkdir -p runs
	cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file runs/sbom.json .venv/bin/python

# runs/ (databases of MLflow and Prefect, artifacts, checkpoints) while it is in use: TO=DIR
backup:
	python3 deploy/backup.py runs $(or $(TO),$(error say where: make backup TO=DIR))

restore:
	python3 deploy/backup.py $(or $(FROM),$(error say from where: make restore FROM=DIR)) runs
