# make train   trains on Fashion-MNIST; options in ARGS, as in: make train ARGS="--epochs 20"
# make test    checks the style and types and runs the tests, a part of each large grid of cases
# make test-all   runs every test, the exhaustive ones too, and says how long it took
# make test-oldest   tests the CPU's operations with the oldest PyTorch and NumPy that are allowed
# make docs    builds the documentation into docs/_build/html
# make wheels   builds wheels into dist and tries each with the oldest and the newest PyTorch
# make notebooks   runs all notebooks in full, which takes hours, and keeps what they show
# make triton-versions   compiles the Triton kernels with every Triton they serve, for an hour or so
# make lint | format | bench | data | clean
# PYTHON chooses the interpreter that the environment in .venv is made from.

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
UV := $(BIN)/uv --quiet
# Says what a stage does and how long it took; make would print commands that nobody reads.
COMMA := ,
stage = @echo "$(1) ..."; start=$$(date +%s); $(2) && echo "    done in $$(($$(date +%s) - start)) s"
CXX_FILES = $(shell find csrc tests/simt tests/cpu -type f)
BUILD_INPUTS = pyproject.toml setup.py MANIFEST.in constraints.txt $(shell find csrc)
FASHION_MNIST = /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz

# A failed build of the kernels stops development, where for a user it means pure Python.
test test-all .venv/dev .venv/oldest/installed wheel-%: export D3PM_FAST_REQUIRE_CPU = 1
# A process for each core, and none that waits for the threads of another.
test test-all test-oldest: export OMP_NUM_THREADS = 1

# The newest of each minor version that the kernels serve; tests take the one of torch 2.10 and 2.11.
TRITONS = 3.4.0 3.5.1 3.6.0 3.7.1 3.8.0 3.9.0
OF_TESTS = $(if $(filter Linux,$(shell uname -s)),.triton/3.6.0/installed)

OF_OPERATIONS = $(patsubst %,tests/test_%.py,loss posterior p_sample q_sample dense transitions \
  derivatives torch_integration)

# For which Pythons; uv finds them, or gets them.
PYTHONS = 3.11 3.12 3.13

.PHONY: train test test-all test-oldest docs notebooks lint format bench data clean triton-versions wheels

train: .venv/train data
	$(BIN)/d3pm-fast train $(ARGS)

test test-all: lint data $(OF_TESTS)
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 $(if $(filter test-all,$@),--all) $(ARGS)

test-oldest: .venv/oldest/installed
	.venv/oldest/bin/python -m pytest --numprocesses=auto --maxprocesses=8 \
	  -k "not triton and not cuda" $(OF_OPERATIONS) $(ARGS)

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

wheels: $(PYTHONS:%=wheel-%)

# The kernels use the OpenMP that PyTorch brings, so that both share their threads.
wheel-%: .venv/dev
	@rm -rf build/wheels/$* dist/*-cp$(subst .,,$*)-*.whl
	$(call stage,Building the wheel for Python $*, \
	  $(UV) build --python $* --out-dir build/wheels/$* && $(call repair,build/wheels/$*) && \
	  cp build/wheels/$*/*.tar.gz dist)
	$(call stage,Trying it with the oldest versions that it allows, $(call try,$*,lowest-direct))
	$(call stage,Trying it with the newest versions, $(call try,$*,highest))

repair = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude libgomp.so.1 \
  --wheel-dir dist $(1)/*.whl >$(1)/log.txt 2>&1 || { cat $(1)/log.txt; exit 1; }
try = $(UV) venv --clear --python $(1) build/wheels/$(1)/trial && \
  $(UV) pip install --python build/wheels/$(1)/trial --resolution $(2) --only-binary :all: \
    -r pyproject.toml dist/*-cp$(subst .,,$(1))-*.whl && \
  (cd / && $(CURDIR)/build/wheels/$(1)/trial/bin/python $(CURDIR)/tests/try_wheel.py)

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

.venv/oldest/installed: .venv/dev
	$(call stage,Installing the oldest versions of what d3pm_fast needs into .venv/oldest, \
	  $(UV) venv --clear --python $(BIN)/python .venv/oldest && \
	  $(UV) pip install --python .venv/oldest --resolution lowest-direct -e '.[test]')
	@touch $@

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
