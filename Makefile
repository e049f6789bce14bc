# make demo: a ρ-VAE beside a vanilla VAE.  make test: the whole test suite.  make bench: the tables and the figure of
# docs/performance.md, measured.  make docs: the documentation.  Each installs what it needs into .venv.
# make lowest: the tests of ar1_dist with the lowest versions that pyproject.toml allows, in .venv-lowest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest

.PHONY: demo test lowest bench lint docs clean

demo: $(VENV)/.vae
	@echo "Training three VAEs on 8x8 digits, which takes a few minutes."
	@$(BIN)/vae-models compare --overwrite
	@echo "Open it in a browser: runs/compare/report.html"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lowest: $(LOWEST)/.dev
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest ar1_dist tests/ar1_dist -n auto --maxprocesses 8

bench: export OMP_NUM_THREADS := 1
bench: $(VENV)/.dev
	mkdir -p runs
	$(BIN)/python -m pytest benchmarks --quiet --benchmark-quiet --benchmark-max-time=0.4 --benchmark-json=runs/bench.json
	$(BIN)/python benchmarks/performance.py runs/bench.json

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

# The stamps say what is installed: they are made last, and made anew when pyproject.toml changes.
$(VENV)/.vae: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV). Most of it is torch: on Linux, with what it needs for a GPU, some 3 GB to download,"
	@echo "6 GB on the disk, and minutes. Without a GPU, a tenth does: stop this by Ctrl-C, and type"
	@echo "  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo"
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[vae]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	touch $@ $(VENV)/.vae

$(LOWEST)/.dev: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*p["dependencies"], sep="\n")' | sed 's/>=/==/' > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check --quiet --editable . \
	  --constraint $(LOWEST)/constraints.txt pytest pytest-xdist hypothesis mpmath scipy statsmodels
	touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[docs]'
	touch $@ $(VENV)/.vae

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(LOWEST) runs docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
