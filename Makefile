# Every target sets up what it needs in .venv, and re-uses it until pyproject.toml or constraints.txt changes.
# Needs make and Python >= 3.11, nothing else. `make` alone lists the targets.

VENV := .venv
RUN := $(VENV)/bin/python -m
DEMO_COMMAND ?= $(VENV)/bin/argprune study studies/demo.yaml --jobs 2
# Which Python makes .venv (default: the first that qualifies), further arguments for pytest, and how many tests run at
# once (each on one thread).
PYTHON ?=
ARGS ?=
WORKERS ?= 2
export PYTHON
# Modules are compiled when first imported (setup does not); a shell that forbids it would make every start slow.
unexport PYTHONDONTWRITEBYTECODE

# Nothing here downloads models or data; the tests that read real tasks take them from this folder where it exists.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
ifndef ARGPRUNE_DATA
ifneq ($(wildcard ../shared/data/.),)
export ARGPRUNE_DATA := $(abspath ../shared/data)
endif
endif

# Drop the stamps of a .venv that no longer works (make < 4.4 exports nothing to $(shell)); `make clean` needs no Python.
ifneq ($(filter-out help clean,$(MAKECMDGOALS)),)
$(shell PYTHON='$(PYTHON)' sh scripts/setup.sh check)
endif
# What .venv has for development serves the demo too.
DEMO_STAMP := $(VENV)/$(if $(wildcard $(VENV)/.dev-stamp),.dev-stamp,.demo-stamp)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

# glibc gives freed memory back to the kernel at every step otherwise, and the page faults take a tenth of the time.
demo: export MALLOC_MMAP_MAX_ := 0
demo: export MALLOC_TOP_PAD_ := 268435456
demo: export MALLOC_TRIM_THRESHOLD_ := 4294967296
demo: $(DEMO_STAMP) ## prune the embedded model by several methods and compare them (minutes, no download)
	$(DEMO_COMMAND)

test: $(VENV)/.dev-stamp ## the test suite; ARGS="-k name" picks
	$(RUN) pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

lint: $(VENV)/.dev-stamp ## ruff check, ruff format --check, mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

bench: $(VENV)/.dev-stamp ## every script of benchmarks/, one after the other
	@for script in benchmarks/*.py; do \
		[ -e "$$script" ] || { echo "bench: benchmarks/ holds no script"; break; }; \
		echo "== $$script"; $(VENV)/bin/python "$$script" || exit 1; \
	done

docs: $(VENV)/.dev-stamp ## doctests, links, tables against their files, the site (build/docs), the tutorial as written
	$(RUN) pytest --doctest-modules --pyargs argprune
	$(VENV)/bin/python scripts/check_docs.py
	$(VENV)/bin/python docs/results/summarise.py --check
	$(RUN) sphinx -W --keep-going -q -b html docs build/docs
	$(VENV)/bin/python scripts/run_tutorial.py docs/tutorial.md

clean: ## remove .venv, caches and build outputs; runs/ is kept
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.demo-stamp: pyproject.toml constraints.txt scripts/setup.sh
	@sh scripts/setup.sh demo
	@touch $@

$(VENV)/.dev-stamp: pyproject.toml constraints.txt scripts/setup.sh
	@sh scripts/setup.sh dev
	@touch $@
