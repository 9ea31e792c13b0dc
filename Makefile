# make train   trains on Fashion-MNIST; options in ARGS, as in: make train ARGS="--epochs 20"
# make test    checks the style and types and runs the tests, a part of each large grid of cases
# make test-all   runs every test, the exhaustive ones too, and says how long it took
# make docs    builds the documentation into docs/_build/html
# make notebooks   runs all notebooks in full, which takes hours, and keeps what they show
# make triton-versions   compiles the Triton kernels with every Triton they serve, for an hour or so
# make lint | format | bench | data | clean
# PYTHON chooses the interpreter that the environment in .venv is made from.

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# Says what a stage does and how long it took; make would print commands that nobody reads.
COMMA := ,
stage = @echo "$(1) ..."; start=$$(date +%s); $(2) && echo "    done in $$(($$(date +%s) - start)) s"
CXX_FILES = $(shell find csrc tests/simt tests/cpu -type f)
BUILD_INPUTS = pyproject.toml setup.py MANIFEST.in constraints.txt $(shell find csrc)
FASHION_MNIST = /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz

# A failed build of the kernels stops development, where for a user it means pure Python.
test test-all .venv/dev: export D3PM_FAST_REQUIRE_CPU = 1
# A process for each core, and none that waits for the threads of another.
test test-all: export OMP_NUM_THREADS = 1

# The newest of each minor version that the kernels serve; tests take the one of torch 2.10 and 2.11.
TRITONS = 3.4.0 3.5.1 3.6.0 3.7.1 3.8.0 3.9.0
OF_TESTS = $(if $(filter Linux,$(shell uname -s)),.triton/3.6.0/installed)

.PHONY: train test test-all docs notebooks lint format bench data clean triton-versions

train: .venv/train data
	$(BIN)/d3pm-fast train $(ARGS)

test test-all: lint data $(OF_TESTS)
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 $(if $(filter test-all,$@),--all) $(ARGS)

docs: .venv/dev
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

notebooks: .venv/dev data
	for notebook in notebooks/*.ipynb; do $(BIN)/papermill $$notebook $$notebook --cwd notebooks || exit 1; done

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

triton-versions: .venv/dev
	+$(MAKE) --no-print-directory --jobs=$$(nproc) $(TRITONS:%=triton-%)

triton-%: .triton/%/installed
	PYTHONPATH=.triton/$* $(BIN)/python -m benchmarks.triton_resources --check --targets sm_90
	PYTHONPATH=.triton/$* $(BIN)/python -m benchmarks.triton_resources --check --targets sm_80 sm_100 \
	  --sizes 27 256 --dtypes bfloat16

bench: .venv/dev
	$(BIN)/python -m benchmarks $(ARGS)

# Without the package the program looks elsewhere and then tries a download.
data:
	@if [ -z "$(findstring --data,$(ARGS))" ] && [ ! -e $(FASHION_MNIST) ] \
	    && command -v apt-get >/dev/null; then \
	  sudo=$$([ "$$(id -u)" = 0 ] || command -v sudo); \
	  set -- $$sudo env DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq --no-install-recommends dataset-fashion-mnist; \
	  echo "Installing the Fashion-MNIST images: $$* ..."; start=$$(date +%s); \
	  if "$$@" >/dev/null || { $$sudo apt-get update -qq && "$$@" >/dev/null; }; \
	  then echo "    done in $$(($$(date +%s) - start)) s"; \
	  else echo "    that did not work; the program will try to download them"; fi; \
	fi

clean:
	rm -rf .venv .triton build dist docs/_build docs/notebooks docs/changelog.md docs/contributing.md *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f d3pm_fast/_cpu*.so

# The install is editable: only what is compiled or declared needs it again.
.venv/train: .venv/python $(BUILD_INPUTS)
	$(call stage,Installing PyTorch$(COMMA) the kernels and what training needs into .venv, \
	  $(PIP) install -c constraints.txt --no-build-isolation -e '.[train]')
	@! ls d3pm_fast/_cpu.*.so >/dev/null 2>&1 || touch $@  # no compiler yet: the next run tries again

.venv/dev: .venv/python $(BUILD_INPUTS)
	$(call stage,Installing PyTorch$(COMMA) the kernels and what development needs into .venv, \
	  $(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]')
	@touch .venv/train $@

# Beside the environment's own: PYTHONPATH=.triton/3.6.0 chooses it. The interpreter of Tritons
# before 3.7 takes one-element arrays for numbers, which NumPy 2.4 refuses.
.PRECIOUS: .triton/%/installed
.triton/%/installed: | .venv/dev
	$(call stage,Installing Triton $* into .triton/$*, \
	  $(PIP) install --no-deps --upgrade --target .triton/$* triton==$* 'numpy<2.4')
	@touch $@

.venv/python: constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	$(call stage,Making the environment .venv, \
	  $(PIP) install -c constraints.txt setuptools pybind11 ninja)
	@touch $@
