# From a fresh clone: `make test` or `make demo`. Everything that is installed goes into .venv.

PYTHON ?= python3
WORKERS ?= 2
TESTS ?= tests

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPED := $(VENV)/typed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq

# a PYTHONPATH of the caller's shell would stand before what is installed here
unexport PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help test lint demo bench clean compile-matrix
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter that .venv is made with (3.10 or newer); TESTS=tests/test_x.py the tests"

test: lint ## linter, type checker, then all tests
	$(BIN)/pytest -q --durations=10 -n $(WORKERS) --dist loadgroup $(TESTS)

# mypy cannot know that kernels/ is installed as ulsam_fused.kernels, so it is shown the tree as it is installed
lint: $(STAMP) ## linter and type checker
	$(BIN)/ruff check .
	@rm -rf $(TYPED) && mkdir $(TYPED) && cp -Rp ulsam_fused $(TYPED)/ && cp -Rp kernels $(TYPED)/ulsam_fused/
	cd $(TYPED) && "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache"

demo: $(STAMP) ## what this machine has, fused against reference, a short benchmark, attention maps of a picture
	$(BIN)/ulsam-fused info
	$(BIN)/ulsam-fused check
	@mkdir -p out
	$(BIN)/ulsam-fused bench --quick --json out/bench.json --plot out/bench.png
	$(BIN)/ulsam-fused attend --demo --output out/attention.png

# the oldest Triton that is supported, the one that the tests pin, and the newest that was tried
compile-matrix: $(STAMP) ## compile every launch configuration within budget, and compare launches, on Triton 3.6, 3.7.1 and 3.9 (minutes)
	for version in 3.6.0 3.7.1 3.9.0; do \
	  $(PIP) install --no-deps --upgrade --target $(VENV)/triton-$$version triton==$$version && \
	  PYTHONPATH=$(VENV)/triton-$$version $(BIN)/python -m benchmarks.compiled.resources --check --arch 80 90 100 \
	    --json $(VENV)/resources-$$version.json && \
	  PYTHONPATH=$(VENV)/triton-$$version:. $(BIN)/python -m tests.kernels.gpu.launches_kept || exit 1; \
	done

bench: $(STAMP) ## the microbenchmark in full; table, JSON and plot in out/
	@mkdir -p out
	$(BIN)/ulsam-fused bench --json out/bench.json --plot out/bench.png

clean: ## remove .venv and everything that tools wrote
	rm -rf $(VENV) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, but %s is %s; choose another with make PYTHON=..." % (sys.executable, sys.version.split()[0]))'
	@echo "installing PyTorch, Triton and the test tools into $(VENV) (once; takes minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt setuptools
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@
