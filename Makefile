# World Models on CarRacing. `make` lists the targets; README.md explains them.

RUN ?= carracing
RUNS ?= data/runs
# Rounds in the dream have a recipe of their own.
PRESET ?= $(if $(filter iterate,$@),dreamer,laptop)
WORKERS ?= $(shell nproc)
EPISODES ?=
GENERATIONS ?=
ROUNDS ?=
SEED ?=
CAR ?=
VIEW ?=
GRID ?=
COMPARE ?=
WORLD ?=
ARGS ?=
PYTHON ?= python3

PY := .venv/bin/python
VENV := .venv/.complete
DIR := $(RUNS)/$(RUN)
COMMITTED := pretrained pretrained/%
folder = $(if $(filter $(COMMITTED),$(1)),data/$(1),$(RUNS)/$(1))
STAGE = $(PY) -m stages.$@ --run $(DIR)
SIZES = --preset $(PRESET) --workers $(WORKERS)

# RUN=pretrained reads the committed folder and writes into $(RUNS)/pretrained, so that git stays clean; likewise
# RUN=pretrained/dream, the committed run whose controller was evolved in the dream.
ifneq ($(filter $(COMMITTED),$(RUN)),)
SOURCE := --source data/$(RUN)
NO_TRAINING = $(error RUN=$(RUN) is a committed run, which is not trained further: choose another RUN)
endif

# What C is evolved on, unless it is another run's.
MODELS = $(if $(findstring --source,$(ARGS)),,$(DIR)/mdnrnn.pt)

.DEFAULT_GOAL := help
.PHONY: help setup collect vae mdnrnn controller dream iterate evaluate probe replay report play publish curves ablate test test-faults lint bench
.NOTPARALLEL:
# Artifacts are written whole or not at all: an interrupted or failed stage must not lose what is finished.
.PRECIOUS: $(DIR)/rollouts/summary.json $(DIR)/vae.pt $(DIR)/mdnrnn.pt

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: RUN=$(RUN) RUNS=$(RUNS) PRESET=$(PRESET) WORKERS=$(WORKERS) EPISODES= GENERATIONS= ROUNDS= VIEW= SEED= CAR= GRID= COMPARE= WORLD= ARGS="

setup: $(VENV) ## make .venv from requirements.txt (every target does it by itself)

$(VENV): requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# A stage first makes what is missing of the stages before it: the files are order-only prerequisites, so an
# older one is never remade; whether it still fits is the stage's own business.
collect: $(VENV) ## play episodes: untrained policies, then a scout that is made first -> rollouts/
	$(NO_TRAINING)$(STAGE) $(SIZES) $(if $(EPISODES),--episodes $(EPISODES)) $(ARGS)

vae: $(VENV) | $(DIR)/rollouts/summary.json ## train V on the frames -> vae.pt
	$(NO_TRAINING)$(STAGE) $(SIZES) $(ARGS)

mdnrnn: $(VENV) | $(DIR)/vae.pt ## encode the frames, train M -> latents.h5, mdnrnn.pt
	$(NO_TRAINING)$(STAGE) $(SIZES) $(ARGS)

controller: $(VENV) | $(MODELS) ## evolve C on real rollouts -> controller.npz
	$(NO_TRAINING)$(STAGE) $(SIZES) $(if $(GENERATIONS),--generations $(GENERATIONS)) $(ARGS)

dream: $(VENV) | $(MODELS) ## evolve C in M's dream -> starts.npz, dream.npz
	$(NO_TRAINING)$(STAGE) $(SIZES) $(if $(GENERATIONS),--generations $(GENERATIONS)) $(ARGS)

iterate: $(VENV) ## rounds of driving, V, M and dream (ROUNDS=n) -> rounds/, the best one's dream.npz
	$(NO_TRAINING)$(STAGE) $(SIZES) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

# ARGS is for the stage that was asked for, not for the ones made on the way.
$(DIR)/rollouts/summary.json: | $(VENV)
	$(MAKE) collect ARGS=

$(DIR)/vae.pt: | $(VENV)
	$(MAKE) vae ARGS=

$(DIR)/mdnrnn.pt: | $(VENV)
	$(MAKE) mdnrnn ARGS=

evaluate: $(VENV) ## score C on 100 fresh tracks of stock CarRacing -> score.json
	$(STAGE) $(SIZES) $(SOURCE) $(if $(EPISODES),--episodes $(EPISODES)) $(ARGS)

probe: $(VENV) ## what a linear map reads from [z; h]: position, speed, bends ahead -> probe.json
	$(STAGE) $(SIZES) $(SOURCE) $(if $(EPISODES),--episodes $(EPISODES)) $(ARGS)

replay: $(VENV) ## film C (VIEW=real|triptych|dream|compare, SEED=, CAR=stock|fast, GRID=n) -> videos/
	$(STAGE) $(SOURCE) $(if $(VIEW),--view $(VIEW)) $(if $(SEED),--track $(SEED)) $(if $(CAR),--car $(CAR)) \
		$(if $(GRID),--grid $(GRID)) $(ARGS)

report: $(VENV) ## one page of all that RUN tells (COMPARE="other-run ...": beside others) -> report.html
	$(STAGE) $(SOURCE) $(if $(COMPARE),--compare $(foreach other,$(COMPARE),$(call folder,$(other)))) $(ARGS)

play: $(VENV) ## drive the dream in a browser (WORLD=real: a real track by keyboard, SEED=, CAR=) -> play/
	$(STAGE) $(SOURCE) $(if $(WORLD),--world $(WORLD)) $(if $(SEED),--track $(SEED)) $(if $(CAR),--car $(CAR)) $(ARGS)

publish: $(VENV) ## put V, M, starts, C, scores and curves of RUN into data/pretrained
	$(if $(SOURCE),$(error RUN=$(RUN) is what publish writes: choose the RUN to publish))$(STAGE) $(ARGS)

curves: $(VENV) | $(DIR)/mdnrnn.pt ## compare variants of the evolution (ARGS='--name NAME ...') -> plots/curves.png
	$(NO_TRAINING)$(STAGE) $(SIZES) $(ARGS)

ablate: $(VENV) | $(DIR)/mdnrnn.pt ## what each part is worth: V only, untrained M, ... -> ablations.json
	$(NO_TRAINING)$(STAGE) $(SIZES) $(if $(EPISODES),--episodes $(EPISODES)) $(ARGS)

test: $(VENV) ## run all tests (10 to 20 minutes on two cores)
	$(PY) -m pytest $(ARGS)

test-faults: $(VENV) ## kill, interrupt, starve and damage everything (about two hours on two cores)
	$(PY) -m pytest -m faults $(ARGS)

lint: $(VENV) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(VENV) ## measure the environment, the store, inference, the evolution's loop and the dream
	$(PY) -m tests.bench_env
	$(PY) -m tests.bench_encoder
	$(PY) -m tests.bench_store
	$(PY) -m tests.bench_collect
	$(PY) -m tests.bench_loop
	$(PY) -m tests.bench_dream
