# Two commands do everything: `make demo` and `make test`. The rest are doors and habits.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PYTEST_ARGS ?=

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PREFECT_HOME ?= $(CURDIR)/runs/prefect
export OMP_NUM_THREADS ?= 1
export PYTHONUNBUFFERED = 1
# mg3d/__init__.py sets these too, but `prefect server` and `mlflow ui` do not import it
export DO_NOT_TRACK = true
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export MLFLOW_DISABLE_TELEMETRY = true
export DVC_NO_ANALYTICS = 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test lint mlflow-ui prefect-ui serve clean

demo: .venv/installed data
	python -m flows.pipeline
	@printf '\nNext:\n  %s\n  %s\n  %s\n' \
	  'make mlflow-ui      # runs, figures, models   http://127.0.0.1:5000' \
	  'make prefect-ui     # flows and their states  http://127.0.0.1:4200' \
	  '.venv/bin/mg3d show models:/mg3d-encoder@candidate'

test: .venv/installed
	python -m pytest --numprocesses 2 $(PYTEST_ARGS)

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

mlflow-ui: .venv/installed
	mlflow ui --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow.db

prefect-ui: .venv/installed
	mkdir -p $(PREFECT_HOME)
	prefect server start --host 127.0.0.1

# the worker of prefect-ui: it takes the runs that are started there
serve: .venv/installed
	PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.serve

clean:
	rm -rf runs prepared .data.partial
