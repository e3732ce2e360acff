# Everything from a fresh checkout: Python 3.11 or newer, make and a package
# index are enough. The environment is made once, from hashes in the lock file.

PYTHON ?= python3
VENV ?= .venv
# Test processes; each wants a core and about 3 GB.
JOBS ?= 2

RUN := $(VENV)/bin/python -m
READY := $(VENV)/ready
REFERENCE := $(VENV)/reference
COMPILER := $(VENV)/compiler
LAUNCH := $(VENV)/launch
BROWSING := $(VENV)/browsing
PAGE := rcmed_jax/serve/page
NODE_PACKAGES := .cache/page

.PHONY: demo test heavy lint lock audit page reference clean

demo: $(READY)
	$(RUN) rcmed_jax demo

# Each process takes a half of the files, so that few share a module's fixtures.
test: $(READY) $(REFERENCE) $(COMPILER) $(LAUNCH) $(BROWSING)
	$(RUN) pytest -n $(JOBS) --dist worksteal --cov=rcmed_jax --cov-fail-under=85
	$(MAKE) lint

# pytest leaves with 5 where it found no test.
heavy: $(READY) $(REFERENCE) $(COMPILER) $(LAUNCH) $(BROWSING)
	$(RUN) pytest -m heavy || test $$? -eq 5

lint: $(READY)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) pyright --pythonpath $(VENV)/bin/python

reference: $(REFERENCE)

# The web page that `rcmed serve` shows; wants Node 18 or newer and npm.
page: $(PAGE)/dist/index.html

$(PAGE)/dist/index.html: $(wildcard $(PAGE)/*.*)
	mkdir -p $(NODE_PACKAGES)
	cp $(PAGE)/package.json $(PAGE)/package-lock.json $(NODE_PACKAGES)
	cd $(NODE_PACKAGES) && npm ci --ignore-scripts --no-audit --no-fund
	NODE_PATH=$(abspath $(NODE_PACKAGES)/node_modules) \
	  node $(PAGE)/build.mjs $(abspath $(PAGE)/dist)

# The newest versions that fit, for every platform and Python at once; of
# PyTorch the CPU build, wherever UV_FIND_LINKS or UV_INDEX says it is.
lock: $(READY)
	$(RUN) uv pip compile --quiet --upgrade --universal --extra dev \
	  --python-version 3.11 --fork-strategy fewest --generate-hashes \
	  --no-emit-index-url --no-header --output-file requirements.lock \
	  pyproject.toml
	$(RUN) uv pip compile --quiet --upgrade --group reference \
	  --constraint requirements.lock --python-version 3.11 --no-annotate \
	  --generate-hashes --no-emit-index-url --no-header \
	  --output-file requirements-reference.lock
	$(RUN) uv pip compile --quiet --upgrade --group compiler \
	  --constraint requirements.lock --python-version 3.11 --no-annotate \
	  --generate-hashes --no-emit-index-url --no-header \
	  --output-file requirements-compiler.lock
	$(RUN) uv pip compile --quiet --upgrade --group launch \
	  --constraint requirements.lock --python-version 3.11 --no-annotate \
	  --generate-hashes --no-emit-index-url --no-header \
	  --output-file requirements-launch.lock
	$(RUN) uv pip compile --quiet --upgrade --group page \
	  --constraint requirements.lock --python-version 3.11 --no-annotate \
	  --generate-hashes --no-emit-index-url --no-header \
	  --output-file requirements-page.lock
	$(VENV)/bin/python docs/licences.py

# Known weaknesses of all that is locked, in the words of an advisory service:
# PyPI's, or OSV's with AUDIT_FLAGS="-s osv". It needs the network, so it is no
# test; what the service does not know fails, and is not taken for clean.
AUDIT := .cache/audit
LOCKS := requirements.lock requirements-launch.lock \
  requirements-reference.lock requirements-compiler.lock \
  requirements-page.lock
audit:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit
	for lock in $(LOCKS); do \
	  sed 's/+cpu / /' $$lock > $(AUDIT)/$$lock && \
	  $(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes \
	    --progress-spinner off $(AUDIT_FLAGS) \
	    --requirement $(AUDIT)/$$lock || exit 1; \
	done

clean:
	rm -rf $(VENV) $(PAGE)/dist .cache .coverage .pytest_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "rcmed-jax needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(RUN) pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# PyTorch's CPU build is not on every index, nor there for every platform.
$(REFERENCE): requirements-reference.lock $(READY)
	$(RUN) pip install --quiet --no-deps --require-hashes \
	  -r requirements-reference.lock || echo "No PyTorch of the lock's build \
	  here; tests/reference will be skipped."
	touch $@

# The TPU compiler needs no TPU, but Linux on x86-64.
$(COMPILER): requirements-compiler.lock $(READY)
	$(RUN) pip install --quiet --no-deps --require-hashes \
	  -r requirements-compiler.lock || echo "No TPU compiler for this machine; \
	  what compiles for TPUs will be skipped."
	touch $@

# A fake of Google's storage, and Kubernetes' schemas.
$(LAUNCH): requirements-launch.lock $(READY)
	$(RUN) pip install --quiet --no-deps --require-hashes \
	  -r requirements-launch.lock || echo "No fakes of a cloud here; what needs \
	  them will be skipped."
	touch $@

# What drives a browser; the browser itself is the system's.
$(BROWSING): requirements-page.lock $(READY)
	$(RUN) pip install --quiet --no-deps --require-hashes \
	  -r requirements-page.lock || echo "No Playwright here; the page is not \
	  tried in a browser."
	touch $@
