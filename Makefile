# Everything a user types. `make help` lists the targets.
PYTHON ?= python3
# Kaggle's, for `make kaggle-image`.
KAGGLE_PYTHON ?= python3.12
# Options for pip: another package index, say.
PIP_ARGS ?=
DATA ?= data
# What `make submit` sends: a run, a cross-validation or an ensemble.json, or a CSV file.
RUN ?= $(if $(FILE),,runs/notebook-before-0)
FILE ?=
MESSAGE ?=
ARGS ?=
# On Kaggle: the command, the name of its kernel and its run, and options of kernels/push.py.
KERNEL ?= train
NAME ?= histopathologic-$(KERNEL)
PUSH ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check $(PIP_ARGS) --editable
# One word of a shell's command line, whatever characters it has; ~/ is the home folder.
home = $(if $(filter ~/%,$(firstword $(1))),$(patsubst ~/%,$(HOME)/%,$(1)),$(1))
quoted = '$(subst ','\'',$(call home,$(1)))'
option = $(if $(2),$(1) $(call quoted,$(2)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo download pack train best submit scores push pull dataset notebook test soak kaggle-image lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed ## make .venv and install the kit into it

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) '.[export]'
	touch $@

# What only tests, checks, benchmarks and the notebook need.
$(VENV)/test $(VENV)/lint $(VENV)/bench $(VENV)/notebook: $(VENV)/%: $(VENV)/installed
	$(PIP_INSTALL) '.[$*]'
	touch $@

demo: demo/submission.csv ## train and predict on the synthetic stand-in, in a few minutes
	@echo
	@echo "The stand-in competition: demo/data"
	@echo "The run: demo/runs/before (see report.html there)"
	@echo "The submission: demo/submission.csv"
	@echo "To see them made again: rm -r demo, then make demo"

demo/submission.csv: demo/runs/before/metrics.json
	$(BIN)/python kernels/predict.py --run demo/runs/before --data demo/data --out $@

demo/runs/before/metrics.json: demo/data/store/manifest.json
	rm -rf demo/runs/before
	$(BIN)/python kernels/train.py --bn before --data demo/data --out demo/runs/before

demo/data/store/manifest.json: $(VENV)/installed
	$(BIN)/python kernels/standin.py --data demo/data
	$(BIN)/python kernels/pack.py --data demo/data

download: $(VENV)/installed ## fetch and pack the competition's data (needs Kaggle credentials)
	$(BIN)/python kernels/download.py $(call option,--data,$(DATA))

pack: $(VENV)/installed ## pack the tiles in DATA, proving each one
	$(BIN)/python kernels/pack.py $(call option,--data,$(DATA))

train: $(VENV)/installed ## train, with options in ARGS
	$(BIN)/python kernels/train.py $(call option,--data,$(DATA)) $(ARGS)

best: $(VENV)/installed ## the best submission in two hours, or as ARGS="--time-limit 30m" says
	$(BIN)/python kernels/best.py $(call option,--data,$(DATA)) $(ARGS)

submit: $(VENV)/installed ## submit RUN (predicted if need be) or FILE and wait for its score
	$(BIN)/python kernels/submit.py $(call option,--run,$(RUN)) $(call option,--file,$(FILE)) \
		$(call option,--data,$(DATA)) $(call option,--message,$(MESSAGE)) $(ARGS)

scores: $(VENV)/installed ## list past submissions and their scores
	$(BIN)/python kernels/scores.py

push: $(VENV)/installed ## run KERNEL with ARGS on Kaggle; PUSH=--resume goes on with it
	$(BIN)/python kernels/push.py --command $(KERNEL) $(call option,--name,$(NAME)) $(PUSH) -- $(ARGS)

dataset: $(VENV)/installed ## upload the packed tiles as a private dataset on Kaggle
	$(BIN)/python kernels/dataset.py $(call option,--data,$(DATA)) $(ARGS)

notebook: $(VENV)/notebook ## the study as notebook.ipynb, executed here, with options in ARGS
	$(BIN)/python kernels/notebook.py $(call option,--data,$(DATA)) $(ARGS)

pull: $(VENV)/installed ## bring back what that kernel has left, as a run folder
	$(BIN)/python kernels/pull.py $(call option,--name,$(NAME)) $(ARGS)

test: $(VENV)/test ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

soak: $(VENV)/test ## run the long forms: more kills, 10,000 mutations, 2,000 epochs (see docs/reliability.md)
	KIT_KILLS=20 $(BIN)/python -m pytest -m 'soak or not soak' -k 'soak or any_instant'

kaggle-image: build/kaggle-image/installed $(VENV)/test ## run the script and the notebook with the versions of Kaggle's image
	KIT_KAGGLE_IMAGE=build/kaggle-image/bin/python $(BIN)/python -m pytest \
		tests/test_kernel_bundle.py tests/test_notebook.py -m 'soak or not soak' -k 'script or image'

build/kaggle-image/installed: tests/kaggle-image.txt
	$(KAGGLE_PYTHON) -m venv build/kaggle-image
	build/kaggle-image/bin/pip install --disable-pip-version-check $(PIP_ARGS) -r tests/kaggle-image.txt
	touch $@

lint: $(VENV)/lint ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/bench ## measure speed and memory beside Keras, PyTorch and timm, with options in ARGS
	$(BIN)/python benchmarks/run.py $(call option,--data,$(DATA)) $(ARGS)

clean: ## remove the environment, the demo and the caches; data/ and runs/ stay
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
