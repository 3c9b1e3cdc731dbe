# Every target does its own set-up: system packages (where it may), a virtual environment in .venv, the C extension.
# What is downloaded besides goes to $XDG_CACHE_HOME/guestwire.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build
SECONDS ?= 60
PYTEST_ARGS ?=
# make test-long SAMPLE=5 SEED=anything runs five of the long tests, chosen by the seed.
SAMPLE ?=
SEED ?= 0
# make bench QUICK=1 ROWS="request/response,rig: udp" PASST=path: short; only such rows; the passt to compare with.
QUICK ?=
ROWS ?=
PASST ?=
export PASST

C_SOURCES := $(wildcard vhost_user/csrc/*.c vhost_user/csrc/*.h) vhost_user/_vring_build.py
EXTENSION := $(VENV)/.extension-built
READY := $(VENV)/.ready
BENCH := $(VENV)/.bench-ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-long bench profile lint fuzz doctor clean system-build system-run system-test system-fuzz system-long

help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(EXTENSION) system-run ## Boot a Linux guest on our network card and vsock, and show what works
	@$(BIN)/python -m qemu.guest.demo

test: lint $(EXTENSION) $(BENCH) system-run system-test ## Lint, then every test but the long ones (PYTEST_ARGS=... is passed on)
	$(BIN)/python -m pytest -m "not long" -n auto --dist loadfile $(PYTEST_ARGS)

test-long: $(EXTENSION) system-run system-test system-fuzz system-long ## The tests that take minutes (SAMPLE=n SEED=s: n of them)
	$(BIN)/python -m pytest -m long $(if $(SAMPLE),--sample $(SAMPLE) --sample-seed $(SEED)) $(PYTEST_ARGS)

bench: $(EXTENSION) $(BENCH) system-run ## Throughput and latency beside slirp, passt and TAP (QUICK=1, ROWS=words, PASST=path)
	@$(BIN)/python -m qemu.guest.bench $(if $(QUICK),--quick) $(if $(ROWS),--rows "$(ROWS)")

profile: $(EXTENSION) $(BENCH) system-run ## Flame graphs of bulk TCP with a guest, Python and C, into bench-out
	@$(BIN)/python -m qemu.guest.bench.profile

lint: $(EXTENSION) ## ruff, mypy --strict, and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(EXTENSION) system-fuzz ## Coverage-guided fuzzing: rings, messages, frames, services (SECONDS=n, default 60)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group fuzz
	@mkdir -p $(BUILD)/fuzz
	$(BIN)/python -m vhost_user.tests.c_programs fuzz --out $(BUILD)/fuzz --seconds $$(( ($(SECONDS) + 3) / 4 ))
	$(BIN)/python -m vhost_user.fuzz.fuzz_messages $$(( ($(SECONDS) + 3) / 4 )) $(BUILD)/fuzz
	$(BIN)/python -m stack.fuzz.fuzz_frames $$(( ($(SECONDS) + 3) / 4 )) $(BUILD)/fuzz
	$(BIN)/python -m stack.fuzz.fuzz_services $$(( ($(SECONDS) + 3) / 4 )) $(BUILD)/fuzz

doctor: $(EXTENSION) ## Check this machine and say what is missing
	@$(BIN)/guestwire doctor

clean: ## Remove what was built here (the cache in $XDG_CACHE_HOME/guestwire stays)
	rm -rf $(VENV) $(BUILD) dist *.egg-info bench-out artifacts .mypy_cache .pytest_cache .ruff_cache .hypothesis \
	    .import_linter_cache vhost_user/_vring*.so vhost_user/_vring.c
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

system-build system-run system-test system-fuzz system-long: system-%:
	@PYTHON=$(PYTHON) tools/system-packages $*

# Built once, and again when what it was made from changes.
$(READY): pyproject.toml setup.py tools/system-packages tools/check-python
	@PYTHON=$(PYTHON) tools/system-packages build
	@$(PYTHON) tools/check-python
	@test -x $(BIN)/python || { echo "Making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing Python packages into $(VENV)"
	@mkdir -p $(BUILD)
	@{ $(BIN)/python -m pip install --disable-pip-version-check --upgrade "pip>=25.1" && \
	    $(BIN)/python -m pip install --disable-pip-version-check --editable . --group dev; } \
	    >$(BUILD)/python-packages.log 2>&1 || { tail -30 $(BUILD)/python-packages.log; exit 1; }
	@touch $@

$(BENCH): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@

$(EXTENSION): $(READY) $(C_SOURCES)
	@echo "Building the C extension"
	@mkdir -p $(BUILD)
	@$(BIN)/python setup.py --quiet build_ext --inplace >$(BUILD)/extension.log 2>&1 || { cat $(BUILD)/extension.log; exit 1; }
	@touch $@
