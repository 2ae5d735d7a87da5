# Needs Python >= 3.11 with venv, and make; uses uv where it is installed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help test demo lint clean

help:
	@echo "make test   run the test suite"
	@echo "make demo   train a small denoiser on MS-SSIM and show what it restores"
	@echo "make lint   ruff and pyright"
	@echo "make clean  remove the environment"

test: $(VENV)/test
	$(BIN)/python -m pytest -n 2 $(ARGS)

demo: $(VENV)/demo
	$(BIN)/python notebooks/demo.py

lint: $(VENV)/test $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# One marker file for each dependency group installed into the environment.
$(VENV)/%: pyproject.toml | $(BIN)/python
	PYTHON=$(BIN)/python ./install.sh $*
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) $(if $(shell command -v uv),--without-pip)

clean:
	rm -rf $(VENV)
