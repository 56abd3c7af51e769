# Two commands for a fresh machine with Python 3.10 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test test-oldest explore lint clean

# Pre-train on the embedded digits. The run ends with a table and a page of what was learned.
demo: $(INSTALLED)
	$(BIN)/python main_adco.py --dataset digits --save_path demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The tests with the lowest versions that requirements.txt allows.
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	sed 's/>=/==/' requirements.txt > $(OLDEST)/lowest.txt
	$(OLDEST)/bin/python -m pip install --quiet -r requirements-dev.txt -c $(OLDEST)/lowest.txt
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile

# Changed files and command lines, by chance and for longer than in `make test`.
explore: $(INSTALLED)
	HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest tests/test_mutations.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(INSTALLED): requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) $(OLDEST) demo
