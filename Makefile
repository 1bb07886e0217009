# From a fresh clone: `make test` or `make demo`. Everything that is installed goes into .venv.

PYTHON ?= python3
WORKERS ?= 2
TESTS ?= tests

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPED := $(VENV)/typed
FILES := $(VENV)/.files
LIST := find ulsam_fused kernels -type f ! -name '*.pyc' | sort
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
EDITABLE := $(PIP) install --no-build-isolation -e
PYTEST := $(BIN)/pytest -q -n $(WORKERS) --dist loadgroup
# the type checker and the C++ compiler, a core for each
CHECKED = $(MAKE) --no-print-directory --jobs=2 --output-sync lint built

# a PYTHONPATH of the caller's shell would stand before what is installed here
unexport PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help test test-quick lint built demo bench docs release-check clean compile-matrix matrix ptx sanitize fuzz mutants lock always
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter that .venv is made with (3.10 or newer); TESTS=tests/test_x.py the tests"

# compiled kernels are kept between runs; Triton finds one again only for the same source, target and compiler
test test-quick compile-matrix ptx: export TRITON_CACHE_DIR := $(CURDIR)/$(VENV)/triton-cache
# and so is the C++ backend, which is compiled first
test test-quick demo bench docs: export ULSAM_FUSED_CACHE := $(CURDIR)/$(VENV)/cpp

test: $(FILES) ## linter, type checker, then all tests
	@$(CHECKED)
	$(PYTEST) --durations=10 $(TESTS)

test-quick: $(FILES) ## linter, type checker, then the tests that are not marked slow
	@$(CHECKED)
	$(PYTEST) -m "not slow" $(TESTS)

built: $(FILES)
	$(BIN)/ulsam-fused build

# mypy cannot know that kernels/ is installed as ulsam_fused.kernels, so it is shown a copy that has it there
lint: $(FILES) ## linter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/tests
	@cp -Rp ulsam_fused benchmarks examples tools $(TYPED)/ && cp -Rp kernels $(TYPED)/ulsam_fused/
	@cp -Rp tests/__init__.py tests/helpers tests/ptx $(TYPED)/tests/
	cd $(TYPED) && "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache"

demo: $(FILES) ## what this machine has, fused against reference, a short benchmark, attention maps of a picture
	$(BIN)/ulsam-fused build
	$(BIN)/ulsam-fused info
	$(BIN)/ulsam-fused check
	@mkdir -p out
	$(BIN)/ulsam-fused bench --quick --json out/bench.json --plot out/bench.png
	$(BIN)/ulsam-fused attend --demo --output out/attention.png
	@$(BIN)/python -m benchmarks.demo out/bench.json out/bench.png out/attention.png

# Triton 3.6 is the oldest that is supported, 3.7.1 the one that the tests pin, 3.9 the newest that was tried.
# `make test` compiles for sm_90 only; the last lines run its test of every configuration for the other two, and for AMD.
compile-matrix: $(FILES) ## compile every launch configuration within budget, and compare launches, on Triton 3.6 to 3.9; and for AMD (many minutes)
	for version in 3.6.0 3.7.1 3.8.0 3.9.0; do \
	  $(PIP) install --no-deps --upgrade --target $(VENV)/triton-$$version triton==$$version && \
	  PYTHONPATH=$(VENV)/triton-$$version $(BIN)/python -m benchmarks.compiled.resources --check --arch 80 90 100 \
	    --json $(VENV)/resources-$$version.json && \
	  PYTHONPATH=$(VENV)/triton-$$version:. $(BIN)/python -m tests.kernels.gpu.launches_kept || exit 1; \
	done
	ULSAM_FUSED_TEST_ARCHS="80 100" $(BIN)/pytest -q tests/kernels/gpu/test_compile.py -k every_configuration
	PYTHONPATH=. $(BIN)/python -m benchmarks.compiled.amd
	ULSAM_FUSED_TEST_AMD="gfx90a gfx942" $(BIN)/pytest -q tests/kernels/gpu/test_compile.py -k widen

# Pythons that are not there are left out, with a line that says so
PAIRS ?= python3.10:2.10.0 python3.11:2.11.0 python3.12:2.12.1 python3.13:2.14.1 python3.13:2.15.0
matrix: $(FILES) ## the quick tests with other Pythons and PyTorches, PAIRS="python3.12:2.14.1 ..."; writes docs/support.md (hours, 5 GB)
	$(BIN)/python -m tools.matrix $(PAIRS)

# Resumable: what has passed is not run again unless a kernel, a test or the emulator has changed.
PTX_PARTS := tests/ptx/emulated/faults.py tests/ptx/emulated/small.py tests/ptx/emulated/published.py \
  tests/ptx/emulated/fuzz.py tests/kernels/gpu/test_forward.py tests/kernels/gpu/test_backward.py \
  tests/kernels/gpu/test_norm_forward.py tests/kernels/gpu/test_norm_backward.py tests/kernels/gpu/test_memory.py \
  tests/kernels/gpu/test_wide.py tests/kernels/test_folded.py tests/kernels/test_general_form.py
ptx: $(FILES) ## execute compiled kernels on the CPU: all their tests, on three architectures and Triton 3.6, 3.7.1 and 3.9 (hours)
	mkdir -p $(VENV)/ptx
	key=$$(find kernels tests/kernels tests/helpers tests/ptx -name '*.py' | sort | xargs cat | sha256sum | cut -c1-16); \
	for version in 3.6.0 3.7.1 3.9.0; do \
	  test -d $(VENV)/triton-$$version/triton || \
	  $(PIP) install --no-deps --target $(VENV)/triton-$$version triton==$$version || exit 1; \
	  for arch in 80 90 100; do for part in $(PTX_PARTS); do \
	    done=$(VENV)/ptx/$$key-$$version-$$arch-$$(basename $$part); \
	    test -e $$done && continue; \
	    PYTHONPATH=$(VENV)/triton-$$version PTX_ARCH=$$arch $(BIN)/python -m pytest -q -p tests.ptx.plugin $$part && \
	    touch $$done || exit 1; \
	  done; done; \
	done

# PyTorch itself is not instrumented: what it leaks, and how its threads wait for each other, is left out
sanitize: export ULSAM_FUSED_CACHE := $(CURDIR)/$(VENV)/sanitized
sanitize: $(FILES) ## the C++ kernels' tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (minutes)
	export CXX="g++ -fsanitize=address,undefined -fno-sanitize-recover=undefined -DULSAM_POISON -g1"; \
	  $(BIN)/ulsam-fused build && LD_PRELOAD="$$(g++ -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  $(BIN)/pytest -q tests/kernels/cpu --deselect tests/kernels/cpu/test_build.py -k "not inner_loops"
	export CXX="g++ -fsanitize=thread -DULSAM_OWN_THREADS -g1"; \
	  $(BIN)/ulsam-fused build && LD_PRELOAD="$$(g++ -print-file-name=libtsan.so)" OMP_NUM_THREADS=1 \
	  TSAN_OPTIONS="halt_on_error=1 ignore_noninstrumented_modules=1" \
	  $(BIN)/pytest -q tests/kernels/cpu/test_threads.py -k "not forked"

bench: $(FILES) ## the microbenchmark in full; table, JSON and plot in out/
	@mkdir -p out
	$(BIN)/ulsam-fused bench --json out/bench.json --plot out/bench.png

docs: $(FILES) $(VENV)/.docs ## the documentation site in out/site; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The type checkers' cache is that of `make lint`. pyright downloads itself once.
release-check: lint $(VENV)/.release ## build dist/, and check what a release shows: its page, types in each installation, CITATION, the workflow
	rm -rf dist && $(BIN)/python -m build --no-isolation > /dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/pytest -q tests/test_packaging.py

MINUTES ?= 10
fuzz: export ULSAM_FUSED_CACHE := $(CURDIR)/$(VENV)/cpp
fuzz: $(FILES) ## random calls against float64 for MINUTES=n; failures become tests
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

mutants: export ULSAM_FUSED_CACHE := $(CURDIR)/$(VENV)/mutants
mutants: $(FILES) ## plant known mistakes one by one: the tests must notice each (an hour; goes on where it was stopped)
	$(BIN)/python -m tests.mutants --workers $(WORKERS)

# LOCK=.github/requirements-3.12.txt installs exactly these wheels; uv resolves them
lock: $(FILES) ## write the locked test environment of CI anew
	$(PIP) install uv
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python .github/lock.py

clean: ## remove .venv and everything that tools wrote
	rm -rf $(VENV) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, but %s is %s; choose another with make PYTHON=..." % (sys.executable, sys.version.split()[0]))'
	@echo "installing PyTorch, Triton and the test tools into $(VENV) (once; takes minutes)"
	@$(PYTHON) -m venv $(VENV)
# bytecode of all, most of which is never imported, would take a minute
	@$(PIP) install --no-compile $(if $(LOCK),--require-hashes --no-deps -r $(LOCK),-c constraints.txt setuptools)
	@$(EDITABLE) $(if $(LOCK),. --no-deps,'.[test]' -c constraints.txt) --no-compile
	@$(LIST) > $(FILES)
	@touch $@

$(VENV)/.docs $(VENV)/.release: $(VENV)/.%: $(STAMP)
	@$(EDITABLE) '.[$*]' -c constraints.txt
	@touch $@

# an editable installation links each file, so a file that came or went needs new links
$(FILES): $(STAMP) always
	@$(LIST) > $@.now
	@cmp -s $@ $@.now && ls -d build/__editable__* > /dev/null 2>&1 || { $(EDITABLE) . --no-deps && mv $@.now $@; }
