# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install -q -c constraints.txt
TESTS ?= tests
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-slow test-timm bench lint wheel clean

demo: $(VENV)/demo.stamp
	OMP_NUM_THREADS=$$(nproc 2>/dev/null || sysctl -n hw.ncpu || echo 2) $(BIN)/thrifty tune --model minilm --data cityline --method lora --rate 3e-3 --epochs 8 --out runs/demo --overwrite

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 -m "not slow and not timm" $(TESTS)

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "slow" $(TESTS)

test-timm: $(VENV)/dev.stamp
	$(PIP) timm open_clip_torch
	$(BIN)/python -m pytest -m "timm" $(TESTS)

bench: $(VENV)/dev.stamp
	OMP_NUM_THREADS=$$(nproc 2>/dev/null || sysctl -n hw.ncpu || echo 2) $(BIN)/python benchmarks/bench.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check src tests benchmarks examples recipes
	$(BIN)/mypy

wheel: $(VENV)/dev.stamp
	$(BIN)/python -m build --wheel --outdir dist

clean:
	rm -rf $(VENV) dist build runs .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("thrifty needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[demo]"
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/demo.stamp
