# The commands of this project.  `make` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
VM ?= both

.DEFAULT_GOAL := help
.PHONY: help run test test-v2 verdicts lint bench docs vm-shell clean stale

help:
	@echo 'make run        set up, then run config.toml.example'
	@echo 'make test       set up, then run the tests (ARGS="-k oom tests/kernel")'
	@echo 'make test-v2    the kernel tests in guests with cgroup v2 (VM=uml, VM=qemu: only there)'
	@echo 'make verdicts   each way a job can end, 200 times, against the reason told (VM=uml, VM=qemu:'
	@echo '                in a guest; ARGS="--runs 30")'
	@echo 'make vm-shell   a shell in such a guest (VM=qemu: the complete one)'
	@echo 'make lint       ruff and mypy'
	@echo 'make bench      compare the start of a container with crun, runc and bwrap'
	@echo 'make docs       write anew what is generated: docs/config.md, operations.md, supervise.1'
	@echo 'make clean      remove what these commands made'
	@echo 'PYTHON=...      the Python to use (3.11 or later; now: $(PYTHON))'

run: $(VENV)/run.stamp
	$(BIN)/supervise config.toml.example

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(ARGS)

# A guest sees this directory and the virtual environment read-only, under an overlay of its own.
test-v2: $(VENV)/test.stamp
	$(BIN)/python -m tests.vm.suite --engine $(VM) -- $(ARGS)

# On this host, or with VM=uml or VM=qemu in a guest.
verdicts: $(VENV)/test.stamp
	$(if $(filter uml qemu,$(VM)),$(BIN)/python -m tests.vm \
		--engine $(VM) --timeout 0 --) $(BIN)/python -m tests.matrix $(ARGS)

vm-shell: $(VENV)/test.stamp
	$(BIN)/python -m tests.vm --engine $(VM:both=uml) --timeout 0 --disk 64M --terminal -- /bin/bash

lint: $(VENV)/test.stamp
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.spawn $(ARGS)

docs: $(VENV)/test.stamp
	$(BIN)/python -m supervisor.front.configdoc >docs/config.md
	$(BIN)/python -m supervisor.front.manual

clean:
	rm -rf $(VENV) build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment holds absolute paths and one Python: for another it is made anew.
export MADE_FOR := $(shell "$(PYTHON)" -c 'import sys; print(sys.version, sys.base_prefix)' \
	2>/dev/null) in $(CURDIR)
ifneq ($(MADE_FOR),$(file <$(VENV)/made-for))
STALE := stale
endif

lacks = { echo 'make: $(1)' >&2; exit 1; }

stale:
	@command -v "$(PYTHON)" >/dev/null || \
		$(call lacks,no $(PYTHON) here: apt-get install python3 (or make PYTHON=/path/to/python3.11))
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		$(call lacks,$(PYTHON) is too old: needs 3.11. apt-get install python3.11 (then make PYTHON=python3.11))
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		$(call lacks,$(PYTHON) cannot make a virtual environment: apt-get install python3-venv)
	rm -rf $(VENV)
	"$(PYTHON)" -m venv $(VENV)
	@printf '%s\n' "$$MADE_FOR" >$(VENV)/made-for

pip_install = $(BIN)/python -m pip install --quiet --disable-pip-version-check -e

$(VENV)/run.stamp: pyproject.toml $(STALE)
	$(pip_install) '.[cli]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml $(STALE)
	$(pip_install) '.[cli,dev]'
	@touch $@ $(VENV)/run.stamp
