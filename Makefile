# `make test` and `make demo` need nothing but Python 3.11 to 3.13; everything else goes into .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Without byte code every process parses torch anew, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE
# The tests and the demo must not depend on what else is installed for the calling Python.
unexport PYTHONPATH
unexport VIRTUAL_ENV

UV_VERSION := 0.13.9
LITERT_VERSION := 0.10.0
BIN := .venv/bin
READY := .venv/.ready
MODULES := src tests $(wildcard benchmarks docs examples)
PYTEST := $(BIN)/pytest
WORKERS ?= 2

.PHONY: help environment litert executorch fleet browser broker test lint format site docs docs-test demo clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

environment: $(READY) ## everything the project needs, into .venv

# The stamp comes last: an installation that broke off is done again.
$(READY): pyproject.toml constraints.txt
	@python=''; \
	for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'acclimate needs Python 3.11, 3.12 or 3.13, and none is on the PATH; name one: make $(or $(MAKECMDGOALS),environment) PYTHON=/path/to/python3.12' >&2; \
	  exit 1; \
	fi; \
	if ! $(BIN)/python -c 'import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	  rm -rf .venv; \
	  if ! "$$python" -m venv .venv; then \
	    rm -rf .venv; \
	    echo "$$python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; \
	    exit 1; \
	  fi; \
	fi
	@rm -f $@
	@echo 'installing into .venv: some gigabytes, mostly torch; a minute or two once they are downloaded'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --compile-bytecode -c constraints.txt -b constraints.txt -e '.[train,dev,docs,agent,openvino,ncnn,litert,watch,mqtt,transformers,trackers,tune]' || { \
	  echo 'The installation failed; the lines above say why. Where a pinned version has no wheel for this machine, change it in constraints.txt.' >&2; \
	  exit 1; \
	}
	@touch $@

# LiteRT's converter pins versions that clash with those above. It borrows torch, 5 GB, from .venv.
litert: $(READY) ## LiteRT's converter, 1.3 GB in an environment of its own
	@$(BIN)/python -m venv --clear --without-pip .venv/litert
	@echo "torch; python_version < '3'" >.venv/litert/borrowed.txt
	@VIRTUAL_ENV=$(CURDIR)/.venv/litert $(BIN)/uv pip install --quiet --compile-bytecode --override .venv/litert/borrowed.txt litert-torch==$(LITERT_VERSION)
	@purelib='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(BIN)/python -c "$$purelib" >"$$(.venv/litert/bin/python -c "$$purelib")/borrowed.pth"

executorch: $(READY) ## ExecuTorch and what exports for it, 0.2 GB, into .venv
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --compile-bytecode -c constraints.txt -b constraints.txt -e '.[executorch,executorch-export]'

fleet: $(READY) ## Ray, for benchmarks on many machines, into .venv
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --compile-bytecode -c constraints.txt -b constraints.txt -e '.[fleet]'

# A Debian package that only tests need: its name, the commands that show that it is there, and the tests that want it.
define debian
@if command -v $(2) >/dev/null; then \
  :; \
elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  echo 'installing $(1) (its log: .venv/$(1).log)'; \
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(1); } \
    >.venv/$(1).log 2>&1 || echo '$(1) could not be installed; $(3) will be skipped'; \
else \
  echo 'no $(1) here; $(3) will be skipped (to have them: apt-get install $(1))'; \
fi
endef

browser: ## headless Chromium for the report's tests, where it can be had (root on Debian)
	$(call debian,chromium,chromium chromium-browser google-chrome,the browser tests)

broker: ## Mosquitto for the tests of MQTT, where it can be had (root on Debian)
	$(call debian,mosquitto,mosquitto /usr/sbin/mosquitto,the tests of MQTT)

test: $(READY) browser broker lint site ## everything that must hold: lint, types, the site's links, all tests
	OMP_NUM_THREADS=1 $(PYTEST) -m '' -n $(WORKERS) --dist loadfile

lint: $(READY) ## style and types
	$(BIN)/ruff check $(MODULES)
	$(BIN)/ruff format --check $(MODULES)
	$(BIN)/mypy

format: $(READY) ## bring the code into shape
	$(BIN)/ruff check --fix $(MODULES)
	$(BIN)/ruff format $(MODULES)

# Strict: a link that leads nowhere, or a parameter described that is not there, fails.
site: $(READY) ## build the documentation's site into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

docs: $(READY) ## bring the tables of the documentation up to date, then build its site
	$(BIN)/python docs/options.py
	$(BIN)/python benchmarks/tables.py
	@$(MAKE) --no-print-directory site

docs-test: $(READY) ## run every code block of the README and the documentation
	OMP_NUM_THREADS=1 $(PYTEST) -m '' tests/test_docs.py

demo: $(READY) ## the whole job on generated scenes; ends with the path of the report
	$(BIN)/acclimate run examples/fog.toml

clean: ## remove everything that was made here, runs excepted
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
