# SNIPER chips. `make help` lists the targets; each makes .venv first where it is missing or out of date.
# make VAR=value sets a variable; ARGS holds further options, handed on as they are.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.SUFFIXES:

BIN := .venv/bin
SNIPER := $(BIN)/sniper
DEMO := demo

ANNOTATIONS ?=
IMAGES ?=
OUT ?=
WORKERS ?=
DATA ?=
RUN ?=
GPUS ?= 1
ARGS ?=

# The options that stand for variables left empty are left out.
WORKERS_OPTION = $(if $(strip $(WORKERS)),--workers $(WORKERS))
# One process per GPU; torchrun only where there are several.
LAUNCH = $(if $(filter-out 1,$(GPUS)),$(BIN)/torchrun --standalone --nproc-per-node $(GPUS) --no-python) $(SNIPER)
# The demo's data are small, so are its chips and its network.
DEMO_CONFIG := --config scripts/demo.yaml

.PHONY: help setup chips negatives train evaluate demo demo-data test lint format bench peers lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## make or update .venv from requirements.lock
	@scripts/setup.sh

chips: setup ## cut the chip data set: ANNOTATIONS=F IMAGES=D OUT=D [WORKERS=N]; generated data without them
ifeq ($(strip $(ANNOTATIONS)),)
	@$(MAKE) --no-print-directory demo-data
	$(SNIPER) chips --annotations $(DEMO)/data/train.json --images $(DEMO)/data/train \
	    --out "$(or $(OUT),$(DEMO)/chips)" $(DEMO_CONFIG) $(WORKERS_OPTION) $(ARGS)
else
	@if [ -z "$(IMAGES)" ] || [ -z "$(OUT)" ]; then \
	    echo "make chips: ANNOTATIONS needs IMAGES=<folder> and OUT=<folder> beside it" >&2; exit 2; fi
	$(SNIPER) chips --annotations "$(ANNOTATIONS)" --images "$(IMAGES)" --out "$(OUT)" $(WORKERS_OPTION) $(ARGS)
endif

negatives: setup ## mine negative chips (not built yet)
	@echo 'make negatives: not built yet (see README, "State")' >&2; exit 1

train: setup ## train the detector: DATA=<chips> RUN=<folder> [GPUS=N]; on the demo chips without them
ifeq ($(strip $(DATA)),)
	@$(MAKE) --no-print-directory chips ARGS=
	$(LAUNCH) train --data $(DEMO)/chips --out "$(or $(RUN),$(DEMO)/run)" $(DEMO_CONFIG) $(ARGS)
else
	@if [ -z "$(RUN)" ]; then echo "make train: DATA needs RUN=<folder> beside it" >&2; exit 2; fi
	$(LAUNCH) train --data "$(DATA)" --out "$(RUN)" $(ARGS)
endif

evaluate: setup ## score a checkpoint on whole images (not built yet)
	@echo 'make evaluate: not built yet (see README, "State")' >&2; exit 1

demo: setup demo-data ## run the pipeline on generated data and leave a picture to look at
	$(SNIPER) check --annotations $(DEMO)/data/train.json --images $(DEMO)/data/train
	$(SNIPER) chips --annotations $(DEMO)/data/train.json --images $(DEMO)/data/train \
	    --out $(DEMO)/chips $(DEMO_CONFIG) $(WORKERS_OPTION) $(ARGS)
	$(SNIPER) verify $(DEMO)/chips
	@mkdir -p $(DEMO)/report
	$(SNIPER) show $(DEMO)/chips --out $(DEMO)/report/chips.png
	@echo
	@echo "The chips:          $(DEMO)/chips (shards and manifest under positives/)"
	@echo "A sheet of them:    $(DEMO)/report/chips.png"
	@echo "The source images:  $(DEMO)/data"

demo-data: setup
	@[ -e $(DEMO)/data/train.json ] && [ -e $(DEMO)/data/val.json ] || \
	    $(BIN)/python scripts/make_demo_data.py --out $(DEMO)/data

test: setup ## run the tests; ARGS="tests/pipeline -k cover" for some of them
	$(BIN)/pytest $(ARGS)

lint: setup ## ruff check, ruff format --check and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## put the code into ruff's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup peers ## measure planning and cutting, and SAHI beside them; figures under bench-results/
	@mkdir -p bench-results
	$(BIN)/python scripts/bench_plan.py --json bench-results/plan.json
	$(BIN)/python scripts/bench_cut.py --json bench-results/cut.json

peers: ## make .venv-peers, the programs that benchmarks compare with
	@scripts/setup.sh --peers

lock: ## regenerate the lock files; ARGS=--upgrade for the newest versions
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/lock.sh $(ARGS)

clean: ## remove what the commands made (demo, bench-results, caches); the environments stay
	rm -rf $(DEMO) bench-results build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find pipeline trainer schemas scripts tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
