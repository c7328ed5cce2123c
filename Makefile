# Everything, on a machine that has only python3 (3.11 to 3.13) and make. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
# KEY=VALUE words of the command line go to the command: `make study study=quick 'study.space.training.epochs=[2, 4]'`.
# Make keeps them with a \ before each space and each \, and with $$ for $.
empty :=
space := $(empty) $(empty)
WORDS = $(filter-out PYTHON=%,$(subst \$(space),<space>,$(subst \\,<backslash>,$(MAKEOVERRIDES))))
OVERRIDES = $(foreach word,$(WORDS),'$(subst <backslash>,\,$(subst <space>,$(space),$(subst $$$$,$$,$(subst ','\'',$(word)))))')

.PHONY: help study train ui results docs test smoke soak lint lock audit .venv

help: ## this list
	@awk -F ':.*## ' '/^[.a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "KEY=VALUE after study, train or ui overrides its config: make study study=quick study.trials=4"
	@echo "What make cannot pass on (+KEY=VALUE, ~KEY): .venv/bin/digitcnn sweep ..."

study: .venv/complete ## search around the article's configuration; the same command again resumes
	@.venv/bin/digitcnn sweep $(OVERRIDES)

train: .venv/complete ## one run with the article's configuration
	@.venv/bin/digitcnn train $(OVERRIDES)

ui: .venv/complete ## MLflow's UI of the records in mlruns/, on http://127.0.0.1:5000 (port=N for another)
	@.venv/bin/digitcnn ui $(OVERRIDES)

results: .venv/complete ## experiments/results/RESULTS.md and its figure again, from the tables beside them
	@.venv/bin/python -m experiments.article from_tables=true

docs: .venv/complete ## the generated pages of docs/, from the schema, the configs' comments and the code
	@.venv/bin/python docs/generate.py

test: lint ## all tests, after lint
	@.venv/bin/python -m pytest --numprocesses 2 --dist loadgroup

smoke: .venv/complete ## builds the wheel and runs a study with it in a bare environment: five minutes
	@.ci/smoke

soak: .venv/complete ## the long fault tests that `make test` leaves out: an hour
	@.venv/bin/python -m pytest --numprocesses 2 --dist loadgroup -m soak

lint: .venv/complete ## ruff, ruff format, mypy --strict and import-linter
	@.venv/bin/ruff check --quiet . && .venv/bin/ruff format --quiet --check . && .venv/bin/mypy --no-error-summary && \
	  { contracts=$$(.venv/bin/lint-imports --no-logo --no-cache) || { echo "$$contracts"; exit 1; }; }

lock: .venv/complete ## writes requirements.lock anew from pyproject.toml
	@.venv/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --quiet --upgrade --output-file requirements.lock

# Strict: what the service does not know, or cannot be asked about, is no good news.
audit: .venv/complete ## asks the package index for known vulnerabilities of what requirements.lock names
	@.venv/bin/uv tool run --quiet pip-audit@2.10.1 --strict --progress-spinner off --require-hashes --disable-pip \
	  --requirement requirements.lock

.venv: .venv/complete ## the environment alone; every other target makes it first

# The file says that everything is in the folder: an installation that was cut off is begun anew. Byte code is compiled
# here, on all cores: without it `import tensorflow` takes 20 s instead of 8 s where Python is told not to write it.
# digitcnn.pth names this folder from where it is itself, and the command digitcnn its Python, so that a repository that
# was moved or copied runs its own code.
.venv/complete: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "error: $(PYTHON) is not Python 3.11 to 3.13; make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "creating .venv from requirements.lock: about 3 minutes"
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile --require-hashes \
	  --requirement requirements.lock
	@.venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile --no-deps \
	  --no-build-isolation --editable .
	@cd .venv/lib/python*/site-packages && echo ../../../.. > digitcnn.pth
	@printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -m digitcnn "$$@"\n' > .venv/bin/digitcnn
	@.venv/bin/python -m compileall -q -j 0 .venv/lib > /dev/null 2>&1 || true
	@touch .venv/complete
