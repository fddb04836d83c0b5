# Everything from a fresh clone: `make demo` trains a net, `make test` passes the tests. Either sets up what it needs.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -qq --constraint constraints.txt
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test constraints clean

help:  ## say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED)  ## set up, and train on the embedded pictures of digits
	@$(BIN)/lamina train digits --net mlp --runs runs

# Two workers with one thread each. With the default of a thread per core in each worker, two threads would share a core,
# and at every barrier of a small matrix product one spins its time slice away, waiting for the other to be scheduled.
test: export OMP_NUM_THREADS := 1
test: export MKL_NUM_THREADS := 1
test: export OPENBLAS_NUM_THREADS := 1
test: $(INSTALLED)  ## set up, and pass lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# The stamp is younger than what it was made from, so a second call installs nothing. torch comes first and alone: it is
# the largest by far, and a failure to get it should show at once. hatchling is installed before the package and used
# without isolation, so that the build, too, takes only what constraints.txt names.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (a minute or two, once)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) torch
	@$(INSTALL) hatchling
	@$(INSTALL) --no-build-isolation --editable '.[all,dev]'
	@touch $@

constraints: $(INSTALLED)  ## write constraints.txt from what .venv holds
	@grep '^#' constraints.txt > $(VENV)/constraints.txt
	@$(BIN)/python -m pip list --disable-pip-version-check --format=freeze --exclude-editable --exclude pip | \
		sed 's/+.*//' >> $(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt
	@touch $(INSTALLED)

clean:  ## remove what was built and set up; runs/ stays
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find lamina tests -name __pycache__ -type d -prune -exec rm -rf {} +
