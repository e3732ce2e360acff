# Everything from a fresh checkout: Python 3.11 or newer, make and a package
# index are enough. The environment is made once, from hashes in the lock file.

PYTHON ?= python3
VENV ?= .venv
# Test processes; each wants a core and about 3 GB.
JOBS ?= 2

RUN := $(VENV)/bin/python -m
READY := $(VENV)/ready

.PHONY: demo test heavy lint lock clean

demo: $(READY)
	$(RUN) rcmed_jax demo

test: $(READY)
	$(RUN) pytest -n $(JOBS) --cov=rcmed_jax --cov-fail-under=85
	$(MAKE) lint

# pytest leaves with 5 where it found no test.
heavy: $(READY)
	$(RUN) pytest -m heavy || test $$? -eq 5

lint: $(READY)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) pyright --pythonpath $(VENV)/bin/python

# The newest versions that fit, for every platform and Python at once.
lock: $(READY)
	$(RUN) uv pip compile --quiet --upgrade --universal --extra dev \
	  --python-version 3.11 --fork-strategy fewest --generate-hashes \
	  --no-emit-index-url --no-header --output-file requirements.lock \
	  pyproject.toml

clean:
	rm -rf $(VENV) .cache .coverage .pytest_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "rcmed-jax needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(RUN) pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
