# World Models on CarRacing. `make` lists the targets; README.md explains them.

ENV ?=
RUN ?=
RUNS ?= data/runs
# Rounds in the dream have their own preset.
PRESET ?= $(if $(filter iterate,$@),rounds,laptop)
WORKERS ?=
THREADS ?=
V ?=
M ?=
C ?=
EPISODES ?=
GENERATIONS ?=
ROUNDS ?=
SEED ?=
EPISODE ?=
CAR ?=
VIEW ?=
GRID ?=
COMPARE ?=
WORLD ?=
ARGS ?=
PYTHON ?= python3
# What only some commands need, by the names of extras in pyproject.toml; `make setup EXTRAS=ray` installs it by hand.
EXTRAS ?= $(if $(filter ray ray:%,$(WORKERS)),ray)

PY := .venv/bin/python
VENV := .venv/.complete
# The version of a supported Python, else nothing. For 3.14 Gymnasium takes another Box2D, which has to be compiled.
version = $(shell $(1) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) and sys.stdout.write("%d.%d" % v[:2])' 2>/dev/null)
CHECK_PYTHON = $(if $(call version,$(PYTHON)),,$(error PYTHON=$(PYTHON) is not Python 3.11, 3.12 or 3.13: give one, for example `make setup PYTHON=python3.11`))
# A .venv is made again when its Python or pip does not run or is not supported, or when PYTHON= names another supported one.
FOUND := $(if $(or $(wildcard $(VENV)),$(shell $(PY) -m pip --version 2>/dev/null)),$(call version,$(PY)))
NAMED := $(if $(filter command,$(origin PYTHON)),$(call version,$(PYTHON)))
RECREATE := $(if $(FOUND),$(filter-out $(FOUND),$(NAMED)),recreate)

# In the shell's environment ENV is the startup file of sh: only that of make's command line counts.
ifneq ($(filter environment%,$(origin ENV)),)
override ENV :=
endif
# So it is with the kinds of V, M and C, whose names are as short.
$(foreach word,V M C,$(if $(filter environment%,$(origin $(word))),$(eval override $(word) :=)))
# Names are one word to make and to the shell, without what they take for their own.
HASH := \#
SIGNS = % * ? [ ] { } ; & | < > ( ) ' " ` \ $$
ifneq ($(words [$(ENV)])$(strip $(foreach sign,$(SIGNS),$(findstring $(sign),$(value ENV))) $(filter $(HASH)%,$(ENV))),1)
$(error ENV="$(ENV)" is no name of an environment: give one such as CarRacing-v3)
endif

$(foreach word,V M C,$(if $(strip $(foreach sign,/ . : $(SIGNS),$(findstring $(sign),$(value $(word)))) \
	$(filter $(HASH)%,$($(word))) $(word 2,$($(word)))),$(error $(word)="$($(word))" is no name of a kind: see `make help`)))

# Without RUN= the environment's name; the same as default_run in wm/config/names.py.
ifeq ($(origin RUN),file)
RUN := $(if $(ENV),$(shell printf %s '$(ENV)' | sed 's|.*[:/]||; s|-v[0-9][0-9]*$$||' | tr A-Z a-z),carracing)
endif

DIR := $(RUNS)/$(RUN)
ODD = $(strip $(foreach sign,: $(SIGNS),$(findstring $(sign),$(value RUNS)/$(value RUN)$(COMPARE))) \
	$(filter $(HASH)%,$(RUN) $(RUNS) $(COMPARE)))
ifneq ($(words [$(RUN)] [$(RUNS)] $(RUN) $(RUNS))$(ODD),4)
$(error RUN="$(RUN)" or RUNS="$(RUNS)" is empty or has a space, or one of them or COMPARE="$(COMPARE)" has a character that make cannot handle$(if $(ODD), ($(ODD))): choose another name)
endif
COMMITTED := pretrained pretrained/%
folder = $(if $(filter $(COMMITTED),$(1)),data/$(1),$(RUNS)/$(1))
STAGE = $(PY) -m stages.$(if $(filter mdnrnn,$@),memory,$@) --run $(DIR) $(if $(ENV),--env $(ENV)) $(if $(SEED),--seed $(SEED))
SIZES = --preset $(PRESET) $(if $(WORKERS),--workers $(WORKERS)) $(if $(THREADS),--threads $(THREADS))

# RUN=pretrained reads the committed folder and writes to $(RUNS)/pretrained, so that git stays clean. The same holds
# for RUN=pretrained/dream, the committed run whose controller was evolved in the dream.
ifneq ($(filter $(COMMITTED),$(RUN)),)
SOURCE := --source data/$(RUN)
endif
# By its name, or by another path to the committed folder.
ifneq ($(filter $(COMMITTED),$(RUN))$(findstring $(abspath data/pretrained)/,$(abspath $(DIR))/),)
NO_TRAINING = $(error RUN=$(RUN) is a committed run and cannot be trained further: choose another RUN)
endif

# Before anything is trained: SEED was the word for the track once.
ifneq ($(and $(SEED),$(filter replay play,$(MAKECMDGOALS))),)
$(error SEED is the seed of the training: choose the track that replay films and play drives with EPISODE=)
endif

# The models that C is evolved on, unless ARGS names those of another run.
MEMORY = $(DIR)/$(or $(M),mdnrnn).pt
MODELS = $(if $(findstring --source,$(ARGS)),,$(MEMORY))
KINDS = $(if $(M),--memory $(M)) $(if $(C),--controller $(C))
# M and C name the controller of a dream, as Pair in wm/run/pair.py does.
PAIR = $(or $(M),mdnrnn)-$(or $(C),linear)
# `make controller evaluate M=...` scores the controller that it has just made.
DRIVER = $(if $(filter controller,$(MAKECMDGOALS)),,$(if $(M)$(C),$(1) $(if $(filter mdnrnn-linear,$(PAIR)),dream,dream-$(PAIR))))

# A kind that none of the goals takes is refused, so that nobody believes that it was used.
TAKE_C := controller dream evaluate probe replay play
TAKE_M := memory mdnrnn $(TAKE_C)
NO_KINDS = $(filter collect vae memory mdnrnn iterate report publish curves ablate,$(MAKECMDGOALS))
$(foreach word,M C,$(if $(and $($(word)),$(NO_KINDS)),$(if $(filter $(TAKE_$(word)),$(MAKECMDGOALS)),,\
	$(error $(word)=$($(word)) has no effect on make $(NO_KINDS): leave it out; ARGS= takes the options of a stage))))

# The keys of the dict of kinds of a room.
kinds = $(shell awk '/^KINDS/ {on = 1} on {print} on && /}/ {exit}' wm/$(1)/kinds.py | grep -o '"[a-z_]*":' | tr -d '":')
listed = $(shell echo $(call kinds,$(1)) | tr ' ' '|')
# A wrong kind is refused before the stages that come before it.
known = $(if $($(1)),$(if $(filter $($(1)),$(call kinds,$(2))),,$(error $(1)=$($(1)) is no kind: choose one of $(call kinds,$(2)))))
$(call known,V,vision)$(call known,M,memory)$(call known,C,controller)

.DEFAULT_GOAL := help
.PHONY: help setup collect vae memory mdnrnn controller dream iterate evaluate probe replay report play publish curves ablate test test-faults lint bench
.NOTPARALLEL:
# Artifacts are written atomically. make must not delete a finished one when a stage is interrupted or fails.
.PRECIOUS: $(DIR)/rollouts/summary.json $(DIR)/vae.pt $(MEMORY)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Kinds: V=$(call listed,vision) M=$(call listed,memory) C=$(call listed,controller)"
	@echo "Variables: ENV=$(ENV) V=$(V) M=$(M) C=$(C) RUN=$(RUN) RUNS=$(RUNS) PRESET=$(PRESET) WORKERS=$(WORKERS) THREADS=$(THREADS) EPISODES= GENERATIONS= ROUNDS= SEED= VIEW= EPISODE= CAR= GRID= COMPARE= WORLD= ARGS= PYTHON=$(PYTHON) EXTRAS=$(EXTRAS)"

setup: $(VENV) $(EXTRAS:%=.venv/.extra-%) ## create .venv from requirements.txt (every target does this when needed)

.PHONY: $(RECREATE)
$(VENV): requirements.txt $(RECREATE)
	$(if $(RECREATE),$(CHECK_PYTHON)@echo "making .venv with $(PYTHON)" && rm -rf .venv && $(PYTHON) -m venv .venv)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# The pins of an extra carry its name as a marker, by which plain pip leaves them out.
.venv/.extra-%: requirements.txt | $(VENV)
	@grep -q 'extra == "$*"' requirements.txt || { echo "EXTRAS=$*: requirements.txt has no such extra" >&2; false; }
	sed -n 's/ *; *extra == "$*".*//p' requirements.txt | $(PY) -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	touch $@

collect vae memory mdnrnn controller dream iterate evaluate probe curves ablate: $(EXTRAS:%=.venv/.extra-%)

# A stage first runs the earlier stages whose output is missing. The files are order-only prerequisites, so an older
# one is never remade; each stage itself checks whether its inputs fit.
collect: $(VENV) ## collect episodes of untrained policies and of a small first controller (scout) -> rollouts/
	$(NO_TRAINING)$(STAGE) $(SIZES) $(if $(EPISODES),--episodes $(EPISODES)) $(ARGS)

vae: $(VENV) | $(DIR)/rollouts/summary.json ## train V on the frames (V=conv) -> vae.pt
	$(NO_TRAINING)$(STAGE) $(SIZES) $(if $(V),--vision $(V)) $(ARGS)

memory: $(VENV) | $(DIR)/vae.pt ## encode the frames, train M (M=mdnrnn) -> latents.h5, mdnrnn.pt
	$(NO_TRAINING)$(STAGE) $(SIZES) $(if $(M),--memory $(M)) $(ARGS)

mdnrnn: $(VENV) | $(DIR)/vae.pt ## the same as memory M=mdnrnn
	$(NO_TRAINING)$(STAGE) $(SIZES) --memory mdnrnn $(ARGS)

controller: $(VENV) | $(MODELS) ## evolve C (C=linear|hidden) on real rollouts -> controller.npz
	$(NO_TRAINING)$(STAGE) $(SIZES) $(KINDS) $(if $(GENERATIONS),--generations $(GENERATIONS)) $(ARGS)

dream: $(VENV) | $(MODELS) ## evolve C in M's dream (M=mdnrnn, C=linear|hidden) -> starts.npz, dream.npz
	$(NO_TRAINING)$(STAGE) $(SIZES) $(KINDS) $(if $(GENERATIONS),--generations $(GENERATIONS)) $(ARGS)

iterate: $(VENV) ## repeat collect, V, M and dream in rounds (ROUNDS=n) -> rounds/, dream.npz of the best round
	$(NO_TRAINING)$(STAGE) $(SIZES) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

# ARGS applies to the requested stage only, not to the stages that run before it.
$(DIR)/rollouts/summary.json: | $(VENV)
	$(MAKE) collect ARGS= M= C=

$(DIR)/vae.pt: | $(VENV)
	$(MAKE) vae ARGS= M= C=

$(MEMORY): | $(VENV)
	$(MAKE) memory ARGS= C=

evaluate: $(VENV) ## score C (M=, C=: that of their dream) on 100 fresh tracks of the stock environment -> score.json
	$(STAGE) $(SIZES) $(SOURCE) $(call DRIVER,--controller) $(if $(EPISODES),--episodes $(EPISODES)) $(ARGS)

probe: $(VENV) ## fit a linear map from C's features to the true state -> probe.json
	$(STAGE) $(SIZES) $(SOURCE) $(call DRIVER,--driver) $(if $(EPISODES),--episodes $(EPISODES)) $(ARGS)

replay: $(VENV) ## film C (VIEW=real|triptych|dream|compare, EPISODE=, CAR=stock|fast, GRID=n) -> videos/
	$(STAGE) $(SOURCE) $(call DRIVER,--controller) $(if $(VIEW),--view $(VIEW)) $(if $(EPISODE),--episode $(EPISODE)) $(if $(CAR),--car $(CAR)) \
		$(if $(GRID),--grid $(GRID)) $(ARGS)

report: $(VENV) ## write one page on RUN (COMPARE="other-run ...": beside other runs) -> report.html
	$(STAGE) $(SOURCE) $(if $(COMPARE),--compare $(foreach other,$(COMPARE),$(call folder,$(other)))) $(ARGS)

play: $(VENV) ## drive the dream in a browser (WORLD=real: a real track in a window, EPISODE=, CAR=) -> play/
	$(STAGE) $(SOURCE) $(call DRIVER,--controller) $(if $(WORLD),--world $(WORLD)) $(if $(EPISODE),--episode $(EPISODE)) $(if $(CAR),--car $(CAR)) $(ARGS)

publish: $(VENV) ## copy V, M, starts, C, scores and curves of RUN to data/pretrained
	$(if $(SOURCE),$(error RUN=$(RUN) is the output of publish: choose the RUN to publish))$(STAGE) $(ARGS)

curves: $(VENV) | $(MEMORY) ## compare variants of the evolution (ARGS='--name NAME ...') -> plots/curves.png
	$(NO_TRAINING)$(STAGE) $(SIZES) $(ARGS)

ablate: $(VENV) | $(MEMORY) ## score variants without a part: V only, untrained M, ... -> ablations.json
	$(NO_TRAINING)$(STAGE) $(SIZES) $(if $(EPISODES),--episodes $(EPISODES)) $(ARGS)

# Files side by side, one process a core, of one thread each: more would wait for one another. ARGS=-n0 runs them one after another, as plain pytest does.
SIDE_BY_SIDE = -n auto --dist loadfile --no-loadscope-reorder

test: $(VENV) .venv/.extra-ray ## run the tests but the fault tests (10 minutes on two cores)
	OMP_NUM_THREADS=1 $(PY) -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-faults: $(VENV) .venv/.extra-ray ## run the fault injection tests: kills, full disks, damage (over an hour on two cores)
	$(PY) -m pytest -m faults -n auto --dist worksteal $(ARGS)

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
