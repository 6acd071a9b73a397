# Every target sets up what it needs in .venv and is safe to repeat.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup

.PHONY: setup demo test test-all check bench clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python >= 3.11 is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,check]'
	touch $@

demo: setup
	$(BIN)/harness run quickstart --save-maps

# Two files of tests at once, each on one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m 'slow or not slow' --durations 40

# The three folders install as one package; a type checker only believes it when it sees them as one.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(VENV)/typed && mkdir -p $(VENV)/typed/harness
	ln -s $(CURDIR)/harness/* $(CURDIR)/methods $(CURDIR)/metrics $(VENV)/typed/harness
	cd $(VENV)/typed && ../bin/mypy --config-file $(CURDIR)/pyproject.toml -p harness

bench: setup
	$(BIN)/python tests/bench.py $(BENCH)

clean:
	rm -rf $(VENV) build *.egg-info
