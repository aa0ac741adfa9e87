# Everything here works from a fresh clone: the first target that needs the environment makes it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DOC    ?=
PIN    := --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
          --no-emit-index-url --no-emit-trusted-host --no-emit-find-links

.PHONY: help demo test check bench soak proto lock clean
.DEFAULT_GOAL := help

help:                ## show this
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

$(VENV)/.ready: requirements-dev.txt pyproject.toml
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

demo: $(VENV)/.ready  ## run the main job for real; DOC=path/to/file.txt takes your own document
	@$(BIN)/python -m examples.demo $(if $(DOC),--document "$(DOC)")

test: $(VENV)/.ready  ## run all tests
	@$(BIN)/python -m pytest

check: $(VENV)/.ready ## lint, types, import floors, generated code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.ready ## measure, side by side
	@$(BIN)/python bench/engine.py
	@$(BIN)/python bench/remote_call.py
	@$(BIN)/python bench/call_parts.py
	@$(BIN)/python bench/interop.py
	@$(BIN)/python bench/streaming.py
	@$(BIN)/python bench/deref.py
	@$(BIN)/python bench/waiting_runs.py

soak: $(VENV)/.ready  ## lose nothing while everything is replaced under load, for 60 s; SECS=N, KILL_SECS=10
	@$(BIN)/python bench/soak.py --secs $(or $(SECS),60) --kill-secs $(or $(KILL_SECS),0)

proto: $(VENV)/.ready ## regenerate the protobuf code
	@$(BIN)/python -m grpc_tools.protoc -I service --python_out=service --pyi_out=service service/blazen_peer/transport/proto/*.proto

lock: $(VENV)/.ready  ## pin all requirements anew, with hashes and without any address: development, the images', their build's
	@$(BIN)/pip-compile $(PIN) --extra dev --output-file requirements-dev.txt pyproject.toml
	@$(BIN)/pip-compile $(PIN) --extra uvloop --constraint requirements-dev.txt --output-file requirements.txt pyproject.toml
	@$(BIN)/pip-compile $(PIN) --only-build-deps --build-deps-for wheel --constraint requirements-dev.txt \
	    --output-file requirements-build.txt pyproject.toml

clean:               ## remove the environment and what runs left behind
	@rm -rf $(VENV) .mesh dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
