# Targets equal CI's steps. The Python to use: `make demo PYTHON=python3.12`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint requirements.lock
EXTRAS := orchestration,openvino,serving,simplification,training
QUICK := -n 2 --dist worksteal -m "not slow and not cuda"

.PHONY: demo install install-dev servers test coverage test-slow test-production check docs bench lock clean

demo: install  ## install, and run the main job on scikit-learn's digits
	$(BIN)/pareflow optimize configs/digits/pipeline.yaml

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

test: install-dev  ## all tests but the slow ones, in two processes
	$(BIN)/python -m pytest $(QUICK) --durations=25

coverage: install-dev  ## the same, and which lines they run: that takes a third as long again
	$(BIN)/python -m pytest $(QUICK) --cov --cov-report=term:skip-covered --cov-fail-under=90

test-slow: install-dev
	$(BIN)/python -m pytest -m "slow and not production"

test-production: install-dev servers  ## the whole story on PostgreSQL, S3, MLflow and Prefect, and the images' steps
	$(BIN)/python -m pytest -m production --durations=10

check: install-dev docs  ## ruff, mypy --strict, import-linter, and the pages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install-dev  ## build/docs/index.html; warnings, broken links among them, are errors
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going docs build/docs

bench: install-dev  ## every claim, measured here
	$(BIN)/python bench/run.py

# torch comes first: where a CPU build of it is installed or at hand, nothing later replaces it.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml requirements.lock
	$(PIP) --editable ".[$(EXTRAS)]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[$(EXTRAS),ann,docs,huggingface,intent,loadgen,ray,redis,s3,tensorboard,dev]"
	touch $@

# What the image `server` holds, and PostgreSQL and promtool of Debian, where they are not there.
servers: .servers/.installed
	@test -d /usr/lib/postgresql && command -v promtool >/dev/null || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql prometheus >/dev/null; }

.servers/.installed: infra/requirements/servers.txt requirements.lock
	$(PYTHON) -m venv .servers
	.servers/bin/python -m pip install --quiet --quiet --disable-pip-version-check --constraint requirements.lock \
	  --requirement $<
	touch $@

lock: install-dev .servers/.installed  ## write what is installed now as the lock
	{ echo "# Every package that pareflow installs, on Python 3.11 and 3.12. Made by \`make lock\`."; \
	  for python in $(BIN)/python .servers/bin/python; do $$python -m pip freeze --exclude-editable; done \
	  | sed 's/+cpu$$//' | sort --ignore-case --unique; } > requirements.lock

clean:
	rm -rf $(VENV) .servers .pareflow build *.egg-info
