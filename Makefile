# Everything here starts from a fresh checkout; `make help` says what there is.
#   make venv PYTHON=python3.12     another interpreter for .venv
#   make test ARGS="-k packing"     more arguments for pytest (or for the demo)
# The gpu-* targets use the current python3 as it is: no .venv, no network, and what cannot be imported is reported.
.DEFAULT_GOAL := help
.PHONY: help demo venv test test-full lint gpu-test gpu-sanitize gpu-bench clean

VENV := $(CURDIR)/.venv/bin
GPU_PYTHON := $(or $(PYTHON),python3)
# torch builds its C++ ops with the ninja that it finds in PATH
IN_VENV := PATH="$(VENV):$$PATH" VIRTUAL_ENV="$(CURDIR)/.venv"

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: venv ## raw text to a trained BERT and GPT-2, a classifier and predictions, in a few minutes on a CPU
	@$(IN_VENV) $(VENV)/python examples/demo.py $(ARGS)

venv: ## make .venv with the pinned dependencies and this project (the other targets do it when needed)
	@PYTHON="$(PYTHON)" tools/make_venv.sh

test: venv ## all CPU tests but the long ones
	@$(IN_VENV) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/python -m pytest -m "not gpu and not slow" $(ARGS)

test-full: venv ## all CPU tests
	@$(IN_VENV) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/python -m pytest -m "not gpu" $(ARGS)

lint: venv ## ruff and mypy, nothing is changed
	@$(VENV)/ruff check . && $(VENV)/ruff format --check . && $(VENV)/mypy

gpu-test: ## the tests that need a CUDA device, those of the kernels first, results in runs/gpu-test/
	@$(GPU_PYTHON) tools/gpu_test.py $(ARGS)

gpu-sanitize: ## compute-sanitizer's memcheck and racecheck over the CUDA kernels, results in runs/gpu-sanitize/
	@$(GPU_PYTHON) tools/gpu_sanitize.py $(ARGS)

gpu-bench: ## the benchmarks on a CUDA device, results in runs/gpu-bench/
	@$(GPU_PYTHON) benchmarks/gpu_bench.py $(ARGS)

clean: ## remove .venv, caches and build folders (runs/ and shards/ stay)
	rm -rf .venv build kernels/built *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
