# `make bench MODEL=cmt_s` and `make test` need Python 3.11+, make, gcc and git, and nothing else.
# On a machine that cannot install, name an interpreter that has the packages: make bench VENV= PYTHON=python3

PYTHON ?= python3
VENV ?= .venv

ifeq ($(strip $(VENV)),)
  PY := PYTHONPATH="$(CURDIR):$(CURDIR)/kernels:$$PYTHONPATH" $(PYTHON)
  READY :=
else
  PY := $(VENV)/bin/python
  READY := $(VENV)/.ready
endif

option = $(if $(strip $($(2))),--$(1) '$(strip $($(2)))')
SHARED = $(call option,model,MODEL) $(call option,resolution,RES) $(call option,batch,BATCH) \
  $(call option,dtype,DTYPE) $(call option,mode,MODE) $(call option,device,DEVICE) $(call option,out,OUT) $(ARGS)

.PHONY: help setup bench memory-curves test lint types bench-harness readme clean

help:
	@echo 'make bench MODEL=cmt_s    measure a model on this machine (RES= BATCH= IMPL= DTYPE= MODE= DEVICE= OUT= ARGS=)'
	@echo 'make memory-curves        ViT against ResNet: peak memory over the batch size, as CSV and picture'
	@echo 'make test                 the whole suite'
	@echo 'make lint types           ruff and mypy'
	@echo 'make bench-harness        what the harness itself costs'
	@echo 'make readme               the tables of README.md from the results'
	@echo 'make setup                the virtual environment alone (VENV= PYTHON=)'

setup: $(READY)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vitbench needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

bench: DTYPE ?= fp32,bf16
bench: MODE ?= infer,train
bench: $(READY)
	$(PY) -m vitbench bench $(call option,impl,IMPL) $(SHARED)

memory-curves: $(READY)
	$(PY) -m vitbench memory-curves $(SHARED)

test: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal $(ARGS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(READY)
	$(PY) -m mypy

bench-harness: $(READY)
	$(PY) -m pytest tests/vitbench/bench_harness.py --benchmark-only --benchmark-json $(or $(OUT),bench-harness.json) $(ARGS)

readme: $(READY)
	$(PY) -m vitbench.report.readme README.md

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
