# make serve | test | lint | wheel | lock | audit | bench. Everything lives in .venv, made from the newest Python >= 3.11 found.
SHELL := /bin/sh
VENV  := .venv
BIN   := $(VENV)/bin
# Asked by running it: a name on the PATH may be a shim of a version that is not there.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
PIP   := $(BIN)/python -m pip --disable-pip-version-check install -qq
# What is locked and nothing else, no code of a package run to build it; then Plimsoll itself with the locked setuptools.
LOCKED = $(PIP) --only-binary :all: --require-hashes --requirement
SELF   = $(PIP) --no-deps --no-build-isolation --editable .
ARGS  ?=

.PHONY: serve test lint format wheel lock audit bench clean

serve: $(VENV)/.serve
	@exec $(BIN)/plimsoll serve --end-with-parent $(ARGS)

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
	@rm -rf build dist && $(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null && ls dist

# Versions stay as they are where they fit; `make lock ARGS=--upgrade` takes the newest.
lock: | $(VENV)/.made
	@$(BIN)/python ops/lock.py $(ARGS)

# Known vulnerabilities of what is locked, from an advisory database. Strict: a package it knows nothing of is no success.
audit: | $(VENV)/.made
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(BIN)/python -m venv "$$folder" && \
	"$$folder/bin/python" -m pip --disable-pip-version-check install -qq pip-audit && \
	"$$folder/bin/pip-audit" --strict --disable-pip --require-hashes --requirement requirements-dev.txt $(ARGS)

# Half an hour on a quiet machine; the table goes into docs/speed.md.
bench: $(VENV)/.dev
	@$(BIN)/python ops/bench/speed.py --write $(ARGS)

clean:
	@rm -rf $(VENV) build dist *.egg-info

$(VENV)/.serve: pyproject.toml requirements.txt | $(VENV)/.made
	@echo "installing Plimsoll into $(VENV) ..."
	@$(LOCKED) requirements.txt && $(SELF) && touch $@

$(VENV)/.dev: pyproject.toml requirements-dev.txt | $(VENV)/.made
	@echo "installing Plimsoll and its test tools into $(VENV) ..."
	@$(LOCKED) requirements-dev.txt && $(SELF) && touch $@ $(VENV)/.serve

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "Plimsoll needs Python 3.11 or newer with venv: install it (brew install python, or apt-get install python3 python3-venv) and run make again"; exit 1; }
	@rm -rf $(VENV) && "$(PYTHON)" -m venv $(VENV) && touch $@
