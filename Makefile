# SNIPER chips. `make help` lists the targets; each makes .venv first where it is missing or out of date.
# make VAR=value sets a variable; ARGS holds further options, handed on as they are.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.SUFFIXES:

BIN := .venv/bin
SNIPER := $(BIN)/sniper
DEMO := demo

# Of a user's own data; they are taken from the command line alone, since an environment may have such names.
ANNOTATIONS :=
IMAGES :=
OUT :=
DATA :=
RUN :=
CHECKPOINT :=
WORKERS ?=
GPUS ?= 1
PYTHON ?=
ARGS ?=

# The options that stand for variables left empty are left out.
WORKERS_OPTION = $(if $(strip $(WORKERS)),--workers $(WORKERS))
# One process per GPU; torchrun only where there are several.
LAUNCH = $(if $(filter-out 1,$(GPUS)),$(BIN)/torchrun --standalone --nproc-per-node $(GPUS) --no-python) $(SNIPER)
# A target of the demo that another one needs: what was given for that one is not for this one.
DEMO_MAKE = $(MAKE) --no-print-directory ANNOTATIONS= IMAGES= OUT= DATA= RUN= CHECKPOINT= ARGS=
# The demo's data are small, so are its chips and its network.
DEMO_CONFIG := --config scripts/demo.yaml

.PHONY: help setup chips negatives train evaluate demo demo-data test test-random test-peers lint format bench gpu-check peers lock \
    clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## make or update .venv from requirements.lock
	@scripts/setup.sh

chips: setup ## cut the chip data set: ANNOTATIONS=F IMAGES=D OUT=D [WORKERS=N]; generated data without them
ifeq ($(strip $(ANNOTATIONS)),)
	@$(DEMO_MAKE) demo-data
	$(SNIPER) chips --annotations $(DEMO)/data/train.json --images $(DEMO)/data/train \
	    --out "$(or $(OUT),$(DEMO)/chips)" $(DEMO_CONFIG) $(WORKERS_OPTION) $(ARGS)
else
	@if [ -z "$(IMAGES)" ] || [ -z "$(OUT)" ]; then \
	    echo "make chips: ANNOTATIONS needs IMAGES=<folder> and OUT=<folder> beside it" >&2; exit 2; fi
	$(SNIPER) chips --annotations "$(ANNOTATIONS)" --images "$(IMAGES)" --out "$(OUT)" $(WORKERS_OPTION) $(ARGS)
endif

negatives: setup ## mine negative chips: DATA=<chips> [IMAGES=<folder>] [GPUS=N]; for the demo chips without them
ifeq ($(strip $(DATA)),)
	@$(DEMO_MAKE) chips
	$(LAUNCH) negatives --data $(DEMO)/chips $(DEMO_CONFIG) $(WORKERS_OPTION) $(ARGS)
else
	$(LAUNCH) negatives --data "$(DATA)" $(if $(IMAGES),--images "$(IMAGES)") $(WORKERS_OPTION) $(ARGS)
endif

train: setup ## train the detector: DATA=<chips> RUN=<folder> [GPUS=N]; on the demo chips without them
ifeq ($(strip $(DATA)),)
	@$(DEMO_MAKE) chips
	$(LAUNCH) train --data $(DEMO)/chips --out "$(or $(RUN),$(DEMO)/run)" --resume=auto $(DEMO_CONFIG) $(ARGS)
else
	@if [ -z "$(RUN)" ]; then echo "make train: DATA needs RUN=<folder> beside it" >&2; exit 2; fi
	$(LAUNCH) train --data "$(DATA)" --out "$(RUN)" $(ARGS)
endif

evaluate: setup ## score on whole images: CHECKPOINT=F ANNOTATIONS=F IMAGES=D [OUT=F] [GPUS=N]; the demo's without them
ifeq ($(strip $(CHECKPOINT)),)
	@$(DEMO_MAKE) train
	$(LAUNCH) evaluate --checkpoint $(DEMO)/run --annotations $(DEMO)/data/val.json --images $(DEMO)/data/val \
	    --out "$(or $(OUT),$(DEMO)/report/detections.json)" --set detect.focus=off $(ARGS)
else
	@if [ -z "$(ANNOTATIONS)" ] || [ -z "$(IMAGES)" ]; then \
	    echo "make evaluate: CHECKPOINT needs ANNOTATIONS=<file> and IMAGES=<folder> beside it" >&2; exit 2; fi
	$(LAUNCH) evaluate --checkpoint "$(CHECKPOINT)" --annotations "$(ANNOTATIONS)" --images "$(IMAGES)" \
	    $(if $(OUT),--out "$(OUT)") $(ARGS)
endif

demo: setup demo-data ## the whole chain on generated data: chips, negatives, training, AP, pictures (CPU, minutes)
	$(SNIPER) check --annotations $(DEMO)/data/train.json --images $(DEMO)/data/train
	@$(DEMO_MAKE) chips
	@$(DEMO_MAKE) negatives
	$(SNIPER) verify $(DEMO)/chips
	$(SNIPER) show $(DEMO)/chips --out $(DEMO)/report/chips.png
	$(SNIPER) show $(DEMO)/chips --kind negative --out $(DEMO)/report/negatives.png
	@$(DEMO_MAKE) train
	$(BIN)/python scripts/compare_focus.py $(DEMO)/run $(DEMO)/data/val.json $(DEMO)/data/val \
	    --out $(DEMO)/report/detections.json
	$(SNIPER) report $(DEMO)/run --out $(DEMO)/report/run.html --detections $(DEMO)/report/detections.json \
	    --annotations $(DEMO)/data/val.json --images $(DEMO)/data/val
	$(SNIPER) detect --checkpoint $(DEMO)/run $(DEMO)/data/val --out $(DEMO)/report/detections --focus-map
	@echo
	@echo "What to look at:  $(DEMO)/report/chips.png        positive chips, boxes coloured by status"
	@echo "                  $(DEMO)/report/negatives.png    mined background, with the proposals that led there"
	@echo "                  $(DEMO)/report/run.html         the training, AP, and what the detector gets wrong"
	@echo "                  $(DEMO)/report/detections/      what the detector finds on validation images, and where it looks finely"
	@echo "                  $(DEMO)/run/pictures/           training batches with targets and detections"

demo-data: setup
	@[ -e $(DEMO)/data/train.json ] && [ -e $(DEMO)/data/val.json ] || \
	    $(BIN)/python scripts/make_demo_data.py --out $(DEMO)/data

test: setup ## run the tests; ARGS="tests/pipeline -k cover" for some of them
	@# two files at a time, one thread each: as fast as two cores allow, and no slower on more
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(ARGS)

test-random: setup ## run the tests of properties on examples that are drawn anew each time
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m hypothesis --hypothesis-profile random $(ARGS)

test-peers: peers ## run the tests that hand chips and detections to the programs of others, in .venv-peers
	OMP_NUM_THREADS=2 .venv-peers/bin/python -m pytest -m peers tests/peers $(ARGS)

lint: setup ## ruff check, ruff format --check and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## put the code into ruff's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup peers ## measure every stage, the peers beside them; figures under bench-results/
	@mkdir -p bench-results
	$(BIN)/python -m scripts.bench.bench_plan --scale --json bench-results/plan.json
	$(BIN)/python -m scripts.bench.bench_cut --json bench-results/cut.json
	$(BIN)/python -m scripts.bench.bench_loader --json bench-results/loader.json
	$(BIN)/python -m scripts.bench.bench_train --json bench-results/train.json
	$(BIN)/python -m scripts.bench.bench_augment --json bench-results/augment.json
	$(BIN)/python -m scripts.bench.bench_negatives --json bench-results/negatives.json
	$(BIN)/python -m scripts.bench.bench_report --json bench-results/report.json
	$(BIN)/python -m scripts.bench.bench_score --json bench-results/score.json
	$(BIN)/python -m scripts.bench.bench_detect --json bench-results/detect.json
	$(BIN)/python -m scripts.bench.bench_export --json bench-results/export.json
	@$(DEMO_MAKE) train
	.venv-peers/bin/python -m scripts.bench.bench_sahi --checkpoint $(DEMO)/run --annotations $(DEMO)/data/val.json \
	    --images $(DEMO)/data/val --json bench-results/sahi.json

gpu-check: $(if $(strip $(PYTHON)),,setup) ## what a GPU makes of the trainer, in 8 minutes: [PYTHON=python3]; tiny sizes on a CPU
	$(or $(strip $(PYTHON)),$(BIN)/python) -m scripts.gpu_check $(ARGS)

peers: ## make .venv-peers, the programs that benchmarks and tests compare with
	@scripts/setup.sh --peers

lock: ## regenerate the lock files; ARGS=--upgrade for the newest versions
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/lock.sh $(ARGS)

clean: ## remove what the commands made (demo, bench-results, caches); the environments stay
	rm -rf $(DEMO) bench-results build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find pipeline trainer schemas scripts tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
