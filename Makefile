# Two commands: `make tutorial` and `make test`. Both make .venv first; a second time they install
# nothing. A torch that is already in .venv stays as it is.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
PROFILE ?= cpu
RUN_DIR ?= runs/$(PROFILE)
# Set to https://download.pytorch.org/whl/cpu for torch's small CPU build on Linux without a GPU.
TORCH_INDEX ?=

.PHONY: tutorial test test-slow lint doctor install
.DEFAULT_GOAL := tutorial

tutorial: $(STAMP)
	$(PY) -m rlhf_helpers run --profile $(PROFILE) --run-dir $(RUN_DIR)

test: lint
	$(PY) -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

test-slow: $(STAMP)
	$(PY) -m pytest -m slow -n auto --maxprocesses 4 --dist load

lint: $(STAMP)
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports

doctor: $(STAMP)
	$(PY) -m rlhf_helpers doctor --profile $(PROFILE)

install: $(STAMP)

$(STAMP): requirements.txt .ci/constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed. Try: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing (Debian: apt install python3-venv)." >&2; exit 1; }
	@if $(PY) -c 'import torch' 2>/dev/null; then \
	  grep -v '^torch==' .ci/constraints.txt > $(VENV)/constraints.txt; \
	else \
	  cp .ci/constraints.txt $(VENV)/constraints.txt; \
	  echo "Installing torch: 200 MB for the CPU build, several GB where pip picks CUDA (README)."; \
	  $(PY) -m pip install torch -c $(VENV)/constraints.txt \
	    $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)); \
	fi
	$(PY) -m pip install -r requirements.txt -c $(VENV)/constraints.txt
	$(PY) -m pip install --no-deps -e .
	@touch $@
