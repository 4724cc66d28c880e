# Two commands matter: `make demo` and `make test`. Both create what they need in this folder and reuse it later.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3.11
GPU_PYTHON ?= python3.12
PY := .venv/bin/python
PIP_QUIET := --quiet --disable-pip-version-check --no-input
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup setup-gpu demo test unit lint command integration long-test gpu-test browser-test trl clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

setup: ## create both environments: .venv (trainer, vLLM) and .venv-teacher (SGLang)
	@$(MAKE) --no-print-directory -j2 .venv/.ready .venv-teacher/.ready

setup-gpu: ## both environments for NVIDIA GPUs: docs/install.md
	@$(MAKE) --no-print-directory -j2 .venv/.ready-gpu .venv-teacher/.ready-gpu

# A folder holds one kind of environment. `.gpu` is made before anything is installed, so it tells of an interrupted one too.
REFUSE_GPU = if [ -e $(@D)/.gpu ]; then \
	echo "error: $(@D) is for GPUs (make setup-gpu), and this needs the CPU's: rm -r $(@D), and repeat" >&2; exit 1; fi
REFUSE_CPU = if [ -d $(@D) ] && [ ! -e $(@D)/.gpu ]; then \
	echo "error: $(@D) is the CPU's (make setup), and this needs the GPU's: rm -r $(@D), and repeat" >&2; exit 1; fi

.venv/.ready: requirements/trainer-cpu.txt requirements/dev.txt pyproject.toml
	@$(REFUSE_GPU)
	@echo "setting up .venv (verl, vLLM, Ray): about 3 minutes, 3 GB"
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install $(PIP_QUIET) torch==2.13.0
	@$(PY) -m pip install $(PIP_QUIET) --no-deps --require-hashes -r requirements/trainer-cpu.txt -r requirements/dev.txt
	@$(PY) -m pip install $(PIP_QUIET) --no-deps --no-build-isolation --editable .
	@$(PY) -m verl_ext.platform.vllm_alias
	@touch $@

.venv-teacher/.ready: requirements/teacher-cpu.txt $(wildcard verl_ext/platform/sglang_cpu/*.toml verl_ext/platform/sglang_cpu/*/*.py)
	@$(REFUSE_GPU)
	@echo "setting up .venv-teacher (SGLang): about 2 minutes, 3 GB"
	@$(PYTHON) -m venv .venv-teacher
	@.venv-teacher/bin/python -m pip install $(PIP_QUIET) torch==2.13.0
	@.venv-teacher/bin/python -m pip install $(PIP_QUIET) --no-deps --require-hashes -r requirements/teacher-cpu.txt
	@.venv-teacher/bin/python -m pip install $(PIP_QUIET) --no-deps --no-build-isolation ./verl_ext/platform/sglang_cpu
	@touch $@

.venv/.ready-gpu: requirements/trainer-cuda.txt requirements/dev.txt pyproject.toml
	@$(REFUSE_CPU)
	@echo "setting up .venv (verl, vLLM, Ray; CUDA 13.0): 11 GB"
	@mkdir -p $(@D) && touch $(@D)/.gpu && $(GPU_PYTHON) -m venv $(@D)
	@$(PY) -m pip install $(PIP_QUIET) --no-deps --require-hashes -r requirements/trainer-cuda.txt -r requirements/dev.txt
	@$(PY) -m pip install $(PIP_QUIET) --no-deps --no-build-isolation --editable .
	@touch $@

.venv-teacher/.ready-gpu: requirements/teacher-cuda.txt
	@$(REFUSE_CPU)
	@echo "setting up .venv-teacher (SGLang; CUDA 13.0): 9 GB"
	@mkdir -p $(@D) && touch $(@D)/.gpu && $(GPU_PYTHON) -m venv $(@D)
	@.venv-teacher/bin/python -m pip install $(PIP_QUIET) --no-deps --require-hashes -r requirements/teacher-cuda.txt
	@touch $@

demo: ## the main job on this machine's CPU: a tiny student learns to do without its prompt
	@started=$$(date +%s); $(MAKE) --no-print-directory setup; \
	 $(PY) -m recipe.demo install_seconds=$$(( $$(date +%s) - started ))

test: setup ## lint, types, unit, contract, commands, and real engines end to end
	@$(MAKE) --no-print-directory lint unit command integration

lint: .venv/.ready ## ruff, pyright, import contracts, hadolint
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m pyright
	@.venv/bin/lint-imports --no-logo && .venv/bin/hadolint docker/*.Dockerfile

# Share of lines and branches that the unit and contract tests reach, in per cent, rounded down. It only rises.
COVERED := 83
COVER := $(PY) -m slipcover --branch --source verl_ext,recipe --skip-covered
# Two processes, one a core; the first alone imports verl's trainer. (Workers of pytest-xdist may end before their numbers
# are written.)
VERLS := tests/contract tests/unit/trainer tests/unit/sft tests/unit/student tests/unit/benchmarks tests/unit/plan \
	tests/unit/platform

unit: .venv/.ready ## unit and contract tests, their slowest, their coverage: about a minute
	@mkdir -p outputs/coverage; cd outputs/coverage; rm -f *.json
	@$(COVER) --json --out outputs/coverage/verl.json -m pytest $(VERLS) --durations=5 > outputs/coverage/verl.log 2>&1 & \
	 failed=; $(COVER) --json --out outputs/coverage/rest.json -m pytest tests/unit $(VERLS:%=--ignore=%) --durations=5 || failed=1; \
	 wait $$! || failed=1; cat outputs/coverage/verl.log; test -z "$$failed"
	@$(COVER) --merge outputs/coverage/verl.json outputs/coverage/rest.json --out outputs/coverage/all.json --fail-under $(COVERED)

command: .venv/.ready ## commands as they are typed: words, files, help, refusals; no engine
	@$(PY) -m pytest tests/command -n 2 --dist loadfile --durations=5

# Left out of `test`, which has 45 minutes on two slow cores: real runs of what unit and contract tests cover there.
LONG := tests/integration/test_comparison.py tests/integration/test_base_teacher.py tests/integration/test_support.py \
	tests/integration/test_tools.py tests/integration/test_timed_pipeline.py

integration: setup ## real vLLM, SGLang and verl on the CPU
	@$(PY) -m pytest tests/integration $(LONG:%=--ignore=%)

long-test: setup ## more of them: a trimmed comparison, self-teachers, the student's support, tools, timed stages; twelve minutes
	@$(PY) -m pytest $(LONG)

gpu-test: setup-gpu ## what only a GPU can show: tests/gpu/README.md
	@$(PY) -m pytest tests/gpu

browser-test: .venv/.ready ## the report in a headless browser, which it installs (apt); never part of `test`
	@bash tests/browser/set-up.sh
	@$(PY) -m pytest tests/browser -rs

trl: .venv-trl/.ready ## TRL beside .venv, for benchmarks/sft_step.py and vs_trl.py: TRL_PYTHON=.venv-trl/bin/python

# TRL on the very torch, transformers and peft of .venv, so that a comparison compares trainers.
.venv-trl/.ready: requirements/trl.txt .venv/.ready
	@$(PYTHON) -m venv .venv-trl
	@site='import site; print(site.getsitepackages()[0])'; \
	 $(PY) -c "$$site" > "$$(.venv-trl/bin/python -c "$$site")/trainer.pth"
	@.venv-trl/bin/python -m pip install $(PIP_QUIET) --no-deps --require-hashes -r requirements/trl.txt
	@touch $@

clean: ## remove both environments and every output
	rm -rf .venv .venv-teacher .venv-trl .venv-gguf .venv-browser outputs .pytest_cache .ruff_cache .import_linter_cache
