# Both main targets do all of their own set-up in .venv: they need python3 (3.11 or newer) with pip, and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-lost-schedulers test-kills test-labelstudio lint docs clean help

help:
	@echo "make demo   install, then race MEAL against random patches on drawn street scenes"
	@echo "make test   install, then lint, type-check and test"
	@echo "make docs   install, then write the pages that are made from code and results again"
	@echo "make clean  remove .venv, caches and runs/demo"

demo: $(VENV)/.base
	rm -rf runs/demo
	$(BIN)/meal-gpu demo --out runs/demo

test: lint
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-lost-schedulers: $(VENV)/.test
	$(BIN)/python -m pytest -m lost_schedulers tests/sharding/test_lost_schedulers.py

test-kills: $(VENV)/.test
	MEAL_GPU_TEST_KILLS=200 $(BIN)/python -m pytest -s --timeout 7200 tests/test_kill.py

# 1 GB, in an environment of its own: it pins what it stands on.
build/labelstudio/bin/label-studio:
	$(PYTHON) -m venv build/labelstudio
	build/labelstudio/bin/pip install --quiet 'label-studio==1.23.*'

test-labelstudio: $(VENV)/.test build/labelstudio/bin/label-studio
	$(BIN)/python -m pytest -m labelstudio tests/labelling

# import-linter reads a package where it lies: the folders that are mapped into it are laid out as they are installed.
lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy
	rm -rf build/installed && mkdir -p build/installed
	cp -R meal_gpu build/installed && cp -R kernels bench build/installed/meal_gpu
	cd build/installed && ../../$(BIN)/lint-imports --no-logo --no-cache ../../pyproject.toml

docs: $(VENV)/.base
	$(BIN)/python -m meal_gpu.configs.document docs/configuration.md
	$(BIN)/python -m meal_gpu.bench.show.markdown
	$(BIN)/python -m meal_gpu.bench.show.recipe
	$(BIN)/python -m meal_gpu.bench.show.labels

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache runs/demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "meal-gpu needs Python 3.11 or newer; '$(PYTHON)' is `$(PYTHON) --version 2>&1`. Use: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps are remade when the dependencies may have changed.
$(VENV)/.base: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@ $(VENV)/.base
