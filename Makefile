# Everything runs in .venv, which is made where there is none. `make` alone says what there is.
#   PYTHON=python3.12    the Python that makes the environment (3.11.4 or newer)
#   TORCH_FROM="..."     options for pip when it installs torch, such as pytorch.org's --index-url for a CPU or CUDA build
#   ARGS="..."           handed on to `diracnets demo` or to pytest
#   JOBS=2               processes that the tests run in

BIN := .venv/bin
READY := .venv/.ready
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11, 4))

# pip compiles modules too, but on one processor alone
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

JOBS := 2
IN_PARALLEL := -n $(JOBS) --dist worksteal

.PHONY: help demo test test-all test-avx2 lint audit clean

help:
	@echo "make demo        train on digits, fold, prove it, classify pictures: the main job"
	@echo "make test        run the tests, but the slow ones"
	@echo "make test-all    run all tests"
	@echo "make test-avx2   run those of networks and training with the kernels of CPUs without AVX-512"
	@echo "make lint        check style and types"
	@echo "make audit       look for known vulnerabilities of the packages in .venv"
	@echo "make clean       remove the environment and the caches (runs/, demo/ and data/ stay)"

demo: $(READY)
	@$(BIN)/diracnets demo $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow" $(ARGS)

test-all: $(READY)
	@$(BIN)/python -m pytest $(IN_PARALLEL) $(ARGS)

test-avx2: $(READY)
	@ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(IN_PARALLEL) tests/nn tests/folding tests/models \
		tests/training/test_learning.py tests/training/test_loop.py $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

# In an environment of its own. --strict: a package that cannot be looked up is no clean one.
audit: $(READY)
	@test -x build/audit/bin/pip-audit || { $(BIN)/python -m venv --clear build/audit \
		&& build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; }
	@$(BIN)/python -m pip list --format=freeze --exclude diracnets --exclude pip --disable-pip-version-check \
		| sed 's/+.*//' > build/audit/packages.txt
	@build/audit/bin/pip-audit --strict --no-deps --disable-pip -r build/audit/packages.txt $(ARGS)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c 'import pip; $(NEW_ENOUGH)' 2>/dev/null; then \
		for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
			if "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null; then found="$$python"; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "make: $(or $(PYTHON),python3) is missing or older than Python 3.11.4, which diracnets needs;" \
				"install a newer one or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
		fi; \
		echo "Making the environment .venv with $$("$$found" --version)"; \
		if ! log="$$("$$found" -m venv --clear .venv 2>&1)"; then \
			echo "$$log" >&2; rm -rf .venv; \
			echo "make: $$found could not make an environment in .venv;" \
				"where its venv module is missing, install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; \
		fi; \
	fi
	@echo "Installing torch and the rest into .venv, once (some minutes on a slow network)"
	@$(PIP) $(TORCH_FROM) torch && $(PIP) -e ".[dev]" \
		|| { echo "make: pip could not install what diracnets needs (its reason stands above);" \
			"if the network was missing, call make again when it is there" >&2; exit 1; }
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib 2>/dev/null || true
	@touch $@
