# Needs Python >= 3.11 with venv, and make; uses uv where it is installed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GPU_VENV := .venv-gpu

ifneq (,$(shell command -v uv))
MAKE_VENV = uv venv --quiet --python $(PYTHON) $(VENV)
INSTALL = VIRTUAL_ENV=$(VENV) uv pip install --quiet
else
# Dependency groups need a pip newer than Python 3.11 brings.
MAKE_VENV = $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
INSTALL = $(BIN)/python -m pip install --quiet
endif

.PHONY: help test test-slow doctest coverage demo notebooks docs bench stress conventions tpu-compile gpu-compile gpu-check lint
.PHONY: clean

help:
	@echo "make test       run the test suite (ARGS= for pytest, TEST_GROUP=oldest for the oldest JAX)"
	@echo "make test-slow  run its slow part, left out above: the notebooks and the documentation, too"
	@echo "make doctest    run the examples in the docstrings"
	@echo "make coverage   run both parts and tell which lines and branches they leave out"
	@echo "make demo       train a small denoiser on MS-SSIM and show what it restores"
	@echo "make notebooks  execute the notebooks and write them back"
	@echo "make docs       build the documentation into docs/_build/html"
	@echo "make bench      time this library and the others (installs them: gigabytes)"
	@echo "make tpu-compile  compile for TPUs, without one, and write benchmarks/results_tpu.md (installs libtpu: 0.6 GB)"
	@echo "make stress     compare with the others on hard pairs, and write docs/stress.md (the same)"
	@echo "make conventions  compare with other programs, and write the table of docs/conventions.md (the same)"
	@echo "make gpu-compile  build the GPU's kernel, and whole programs for H100, without one (Python 3.12 or newer; gigabytes)"
	@echo "make gpu-check  on a machine with an NVIDIA GPU: the kernel's numbers and times (the same)"
	@echo "make lint       ruff and pyright"
	@echo "make clean      remove the environment"

TEST_GROUP ?= test

test: $(VENV)/$(TEST_GROUP).installed
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-slow: $(VENV)/test-slow.installed
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

doctest: $(VENV)/test.installed
	$(BIN)/python -m pytest --doctest-modules jax_msssim

coverage: $(VENV)/test-slow.installed
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term-missing $(ARGS)

demo: $(VENV)/demo.installed
	$(BIN)/python notebooks/demo.py

notebooks: $(VENV)/notebooks.installed
	$(BIN)/python notebooks/execute.py $(ARGS)

docs: $(VENV)/docs.installed
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/bench.installed
	$(BIN)/python benchmarks/run.py $(ARGS)

# An environment of its own: with libtpu in it, JAX looks for a TPU.
tpu-compile:
	@$(MAKE) --no-print-directory VENV=.venv-tpu .venv-tpu/tpu.installed
	.venv-tpu/bin/python benchmarks/tpu_compile.py $(ARGS)

stress: $(VENV)/bench.installed
	$(BIN)/python benchmarks/stress.py

conventions: $(VENV)/test.installed $(VENV)/peers.installed
	$(BIN)/python docs/make_conventions.py

gpu-compile:
	@$(MAKE) --no-print-directory $(GPU_VENV)/gpu.installed VENV=$(GPU_VENV)
	JAX_PLATFORMS=cpu $(GPU_VENV)/bin/python -m pytest -n 2 tests/test_cuda.py tests/test_gpu_programs.py $(ARGS)

gpu-check:
	@$(MAKE) --no-print-directory $(GPU_VENV)/gpu.installed VENV=$(GPU_VENV)
	PYTHON=$(GPU_VENV)/bin/python bash tests/on_gpu/run.sh

lint: $(VENV)/test.installed $(VENV)/lint.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The package in editable form and one dependency group; made anew when pyproject.toml changes.
$(VENV)/%.installed: pyproject.toml | $(BIN)/python
	@echo "Installing jax_msssim and its group '$*' into $(VENV)"
	@$(INSTALL) --editable . --group $*
	@touch $@

$(BIN)/python:
	@$(MAKE_VENV)

clean:
	rm -rf $(VENV)
