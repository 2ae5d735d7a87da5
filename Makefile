# Needs Python >= 3.11 with venv, and make; uses uv where it is installed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

ifneq (,$(shell command -v uv))
MAKE_VENV = uv venv --quiet --python $(PYTHON) $(VENV)
INSTALL = VIRTUAL_ENV=$(VENV) uv pip install --quiet
else
# Dependency groups need a pip newer than Python 3.11 brings.
MAKE_VENV = $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
INSTALL = $(BIN)/python -m pip install --quiet
endif

.PHONY: help test test-slow doctest demo bench conventions lint clean

help:
	@echo "make test     run the test suite (ARGS= for pytest)"
	@echo "make test-slow  run its slow part, left out above"
	@echo "make doctest  run the examples in the docstrings"
	@echo "make demo     train a small denoiser on MS-SSIM and show what it restores"
	@echo "make bench    time this library and the others (installs them: gigabytes)"
	@echo "make conventions  compare with other programs, and write the table of docs/conventions.md"
	@echo "make lint     ruff and pyright"
	@echo "make clean    remove the environment"

test: $(VENV)/test.installed
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-slow: $(VENV)/test.installed
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

doctest: $(VENV)/test.installed
	$(BIN)/python -m pytest --doctest-modules jax_msssim

demo: $(VENV)/demo.installed
	$(BIN)/python notebooks/demo.py

bench: $(VENV)/bench.installed
	$(BIN)/python benchmarks/run.py $(ARGS)

conventions: $(VENV)/test.installed $(VENV)/peers.installed
	$(BIN)/python docs/make_conventions.py

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
