# make demo, make test: each sets up its own .venv on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export SEMSYNTH_DATA ?= $(abspath ../shared/data)

.PHONY: setup demo test test-all interop lint docs bench clean
.DELETE_ON_ERROR:

$(STAMP): pyproject.toml ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" -c ci/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c ci/constraints.txt
	@touch $@

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/python ci/demo.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" tests

test-all: $(STAMP)
	SEMSYNTH_FUZZ_SECONDS=300 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

interop: $(STAMP)
	$(BIN)/python ci/verify_bundles.py --fresh --zoo dist/zoo
	$(BIN)/python ci/monai_label.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow tests/test_federated.py tests/test_publishing.py tests/bundles/test_deploy.py tests/test_container.py tests/synthesis/test_onnx.py

docs: $(STAMP)
	$(BIN)/python ci/docs_site.py

bench: $(STAMP)
	set -e; export OMP_WAIT_POLICY=PASSIVE; for script in ci/benchmarks/[!_]*.py; do $(BIN)/python $$script; done

clean:
	rm -rf demo dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
