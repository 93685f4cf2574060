# `make bench MODEL=cmt_s` and `make test` need Python 3.11+, make, gcc and git, and nothing else.
# On a machine that cannot install, name an interpreter that has the packages: make bench VENV= PYTHON=python3
# `make certify` and `make kernels-bench` do so themselves where python3 has them.

PYTHON ?= python3
VENV ?= .venv
# Many processes import torch, which takes twice as long where compiled modules may not be kept.
export PYTHONDONTWRITEBYTECODE :=

AS_IT_IS := PYTHONPATH="$(CURDIR):$(CURDIR)/kernels:$$PYTHONPATH" $(PYTHON)
ifeq ($(strip $(VENV)),)
  PY := $(AS_IT_IS)
  READY :=
else
  PY := $(VENV)/bin/python
  READY := $(VENV)/.ready
endif

# Of the two targets that GPU machines run, which often have the packages and no network; a VENV= that is given is used.
ON_GPU := certify kernels-bench
GPU_PY := $(PY)
GPU_READY := $(READY)
ifneq ($(filter $(ON_GPU),$(MAKECMDGOALS)),)
  ifeq ($(origin VENV),file)
    NEEDED := torch triton numpy pandas pynvml typer rich safetensors PIL
    ifeq ($(shell $(PYTHON) -c 'import sys; from importlib.util import find_spec as has; assert sys.version_info >= (3, 11); print(all(map(has, "$(NEEDED)".split())))' 2>&1 | tail -n 1),True)
      GPU_PY := $(AS_IT_IS)
      GPU_READY :=
    endif
  endif
endif

option = $(if $(strip $($(2))),--$(1) '$(strip $($(2)))')
SHARED = $(call option,model,MODEL) $(call option,resolution,RES) $(call option,batch,BATCH) \
  $(call option,dtype,DTYPE) $(call option,mode,MODE) $(call option,device,DEVICE) $(call option,out,OUT) $(ARGS)

.PHONY: help setup bench memory-curves test test-fast test-faults fault-table fuzz test-oldest test-oldest-fast test-newest lint types bench-harness \
  bench-compare report readme clean memory-truth throughput-truth fit-predictor trace-predictor audit-truth audit audit-all \
  audit-compile audit-accept audit-picture audit-peers gate kernels-bench certify wheels

# Environments of the oldest and the newest supported versions, 5 GB and minutes each (constraints-*.txt).
OLDEST := $(or $(strip $(VENV)),.venv)-oldest
NEWEST := $(or $(strip $(VENV)),.venv)-newest

help:
	@echo 'make bench MODEL=cmt_s    measure a model here, minutes (RES= BATCH= IMPL= DTYPE= MODE= DEVICE= OUT= ARGS='--all', '--budget 1h')'
	@echo 'make memory-curves        ViT against ResNet: peak memory over the batch size, as CSV and picture'
	@echo 'make memory-truth         predicted memory beside every published figure, as CSV and picture (OUT=)'
	@echo 'make throughput-truth     predicted images/s beside every published figure, held out, as CSV and picture (OUT=)'
	@echo 'make fit-predictor        the parameters of `vitbench predict` from published figures (trace-predictor: their models, IMPL=compile)'
	@echo 'make test                 the whole suite'
	@echo 'make test-fast            a part of it, for every save'
	@echo 'make test-faults          processes killed, disks full, models that hang: every fault (PART=1/8: some of the slow ones)'
	@echo 'make fault-table          the same, and docs/faults.md of what survived'
	@echo 'make fuzz                 thousands of random inputs for what reads command lines and files'
	@echo 'make test-oldest          the main job, then the whole suite, with torch 2.11 and Triton 3.6 (test-oldest-fast: a part)'
	@echo 'make test-newest          the same with torch 2.14 and Triton 3.8'
	@echo 'make lint types           ruff, the walls between packages and rooms (import-linter), mypy'
	@echo 'make bench-harness        what the harness itself costs, and a small case (TIMM_BENCHMARK=: beside that benchmark.py of timm)'
	@echo 'make bench-compare        how often vitbench compare is wrong, on simulated noise'
	@echo 'make audit                kernels against the committed audit: sm_90, and the forward passes elsewhere (PART=1/8)'
	@echo 'make audit-all            the same for every launch on sm_80, sm_90 and sm_100'
	@echo 'make audit-compile        every launch compiles without spills, with two versions of Triton (PART=1/8: a part)'
	@echo 'make audit-accept         renew the committed audit, in a commit of its own'
	@echo 'make audit-picture        pipe use and floor share of every kernel, from the committed audit'
	@echo 'make audit-peers          ours beside kernels as people write them, as CSV: modelled, forward and backward'
	@echo 'make audit-truth          published kernel times beside modelled ones, as CSV and picture'
	@echo 'make gate                 this checkout against main: measured on a GPU, audited without (AGAINST= ARGS=)'
	@echo 'make kernels-bench        kernels beside eager, SDPA, FlexAttention, compile, cuDNN (DEVICE= OUT= KERNEL= ARGS=)'
	@echo 'make certify              everything that only a GPU can prove, resumable (BUDGET= STAGE= OUT= DEVICE= ARGS=)'
	@echo 'make wheels OUT=dir       what a GPU machine without network needs for that, as wheels'
	@echo 'make report               results/ as one page, with pictures and a summary (RESULTS= OUT=build/report AGAINST=)'
	@echo 'make readme               the tables and pictures of README.md and docs/ from the results'
	@echo 'make setup                the virtual environment alone (VENV= PYTHON=)'

setup: $(READY)

$(VENV)/.ready: constraints.txt
$(OLDEST)/.ready: constraints-oldest.txt
$(NEWEST)/.ready: constraints-newest.txt
$(VENV)/.ready $(OLDEST)/.ready $(NEWEST)/.ready: pyproject.toml constraints-libraries.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vitbench needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c $(filter-out constraints-libraries.txt,$(filter constraints%,$^)) -e '.[dev]'
	@touch $@

bench: DTYPE ?= fp32,bf16
bench: MODE ?= infer,train
bench: $(READY)
	$(PY) -m vitbench bench $(call option,impl,IMPL) $(SHARED)

memory-curves: $(READY)
	$(PY) -m vitbench memory-curves $(SHARED)

memory-truth: $(READY)
	$(PY) -m vitbench.memory.truth $(or $(OUT),results/truth)

throughput-truth: $(READY)
	$(PY) -m vitbench.predict.truth $(or $(OUT),results/truth)

fit-predictor: $(READY)
	$(PY) -m vitbench.predict.refit

trace-predictor: $(READY)
	$(PY) -m vitbench.predict.traced $(IMPL)

test-fast: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto -m fast $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal -m 'not slow_fault' $(ARGS)

test-faults: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal $(if $(PART),-m slow_fault --part=$(PART),-m fault) $(ARGS)

fault-table: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal -m fault --fault-table=docs/faults.md $(ARGS)

fuzz: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal -m fuzz --hypothesis-profile fuzz --hypothesis-show-statistics $(ARGS)

# The main job first: where that fails, the rest says little.
test-oldest test-newest: test-%: $(or $(strip $(VENV)),.venv)-%/.ready
	OMP_NUM_THREADS=1 $(<D)/bin/python -m pytest -x -m smoke
	OMP_NUM_THREADS=1 $(<D)/bin/python -m pytest -n auto --dist worksteal -m 'not smoke and not slow_fault' $(ARGS)

test-oldest-fast: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n auto --dist worksteal -m smoke $(ARGS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -c 'from importlinter.cli import lint_imports_command as run; run()' --no-cache --no-logo

types: $(READY)
	$(PY) -m mypy

bench-harness: $(READY)
	$(PY) -m pytest tests/vitbench/bench_harness.py --benchmark-only --benchmark-json $(or $(OUT),bench-harness.json) $(ARGS)

bench-compare: $(READY)
	$(PY) -m pytest tests/vitbench/gate/bench_compare.py --benchmark-only --benchmark-json $(or $(OUT),bench-compare.json) $(ARGS)

audit: $(READY)
	$(PY) -m vitbench audit --arch sm_90 --baseline results/baseline $(call option,part,PART) $(ARGS)
	$(PY) -m vitbench audit --arch sm_80,sm_100 --kernel '*/fwd*/*' --baseline results/baseline $(call option,part,PART) $(ARGS)

audit-all: $(READY)
	$(PY) -m vitbench audit --baseline results/baseline $(ARGS)

audit-compile: $(READY) $(OLDEST)/.ready
	$(PY) -m vitbench audit --compile-only --baseline results/baseline $(call option,part,PART) $(ARGS)
	$(OLDEST)/bin/python -m vitbench audit --compile-only --baseline results/baseline $(call option,part,PART) $(ARGS)

audit-accept: $(READY)
	$(PY) -m vitbench audit --accept results/baseline > /dev/null
	git add results/baseline
	git diff --cached --quiet -- results/baseline || git commit --quiet -m 'Accept the audit as the baseline' -- results/baseline

audit-picture: $(READY)
	$(PY) -m vitbench.audit.picture results/baseline

audit-peers: $(READY)
	-$(PY) -m vitbench audit --arch sm_90 --peers --out results/baseline/peers-sm_90.csv $(ARGS)

audit-truth: $(READY)
	$(PY) -m vitbench.audit.truth results/truth

gate: $(READY)
	$(PY) -m vitbench gate --against $(or $(AGAINST),main) $(ARGS)

kernels-bench: $(GPU_READY)
	$(GPU_PY) -m vitbench.kernel_bench $(call option,device,DEVICE) $(call option,kernel,KERNEL) $(call option,out,OUT) $(ARGS)

certify: $(GPU_READY)
	$(GPU_PY) -m vitbench certify $(call option,budget,BUDGET) $(call option,stage,STAGE) $(call option,device,DEVICE) \
	  $(call option,out,OUT) $(ARGS)

wheels: $(READY)
	$(PY) -m vitbench.certify.wheels $(or $(OUT),build/wheels) $(ARGS)

report: $(READY)
	$(PY) -m vitbench report $(or $(RESULTS),$(filter-out results/verdict/%,$(wildcard results/*/*.csv))) \
	  --out $(or $(OUT),build/report) $(call option,against,AGAINST) $(ARGS)

# The tables of README.md and docs/, and the pictures of the report that README shows.
PICTURES := memory-over-batch-train pareto-macs
readme: report
	$(PY) -m vitbench.readme README.md docs/*.md kernels/README.md
	cp $(PICTURES:%=$(or $(OUT),build/report)/%.png) results/report/

clean:
	rm -rf .venv .venv-oldest .venv-newest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
