# make serve | test | lint | wheel. Everything lives in .venv, made from the newest Python >= 3.11 that is found.
SHELL := /bin/sh
VENV  := .venv
BIN   := $(VENV)/bin
# Asked by running it: a name on the PATH may be a shim of a version that is not there.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
PIP   := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
ARGS  ?=

.PHONY: serve test lint format wheel clean

serve: $(VENV)/.serve
	@exec $(BIN)/plimsoll serve $(ARGS)

test: $(VENV)/.dev
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# build/ is emptied first: setuptools would put what an earlier build left there into the wheel.
wheel: $(VENV)/.dev
	@rm -rf build dist && $(BIN)/python -m build --wheel --outdir dist . >/dev/null && ls dist

clean:
	@rm -rf $(VENV) build dist *.egg-info

$(VENV)/.serve: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "installing Plimsoll into $(VENV) ..."
	@$(PIP) --editable . && touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "installing Plimsoll and its test tools into $(VENV) ..."
	@$(PIP) --editable '.[dev]' && touch $@ $(VENV)/.serve

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "Plimsoll needs Python 3.11 or newer with venv: install it (brew install python, or apt-get install python3 python3-venv) and run make again"; exit 1; }
	@rm -rf $(VENV) && "$(PYTHON)" -m venv $(VENV) && touch $@
