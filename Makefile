# Everything happens in .venv, which the first target that needs it makes.
#   make demo          the example site on http://127.0.0.1:8000   (PORT=8001 for another port)
#   make test          ruff, mypy and pytest, up to the first failure   (ARGS="-k name" goes to pytest)
#   make reliability   the full form of tests/reliability: half an hour, and an hour of soak   (ADMISSION_TEST_SOAK=60: a minute)
#   make screenshots   the pictures of the documentation, into docs/images
#   make lint          ruff and mypy
#   make bench         the benchmarks   (ARGS goes to them)
#   make venv          .venv with everything for the above

PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
DECLARED := pyproject.toml setup.py

.PHONY: help demo test reliability screenshots lint bench venv servers browser
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

demo: .venv/demo.stamp
	@exec $(BIN)/wsgi-admission demo --port $(PORT)

# Two at a time first, then what must have the machine to itself.  pytest ends with 5 where ARGS choose nothing.
test: lint servers browser
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not alone' $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m alone $(ARGS) || [ $$? = 5 ]

reliability: .venv/test.stamp servers
	ADMISSION_TEST_SIZE=full $(BIN)/python -m pytest tests/reliability $(ARGS)

screenshots: .venv/test.stamp browser
	$(BIN)/python -m tests.screenshots

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without them the tests over Redis are skipped, but in CI they fail.  At run level 1 the package starts no service.
servers:
	@command -v redis-server >/dev/null && command -v openssl >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends redis-server openssl; \
	  else \
	    echo "Note: tests over Redis need redis-server and openssl. On Debian and Ubuntu: sudo apt-get install redis-server openssl" >&2; \
	  fi; }

# Likewise for the tests of pages.  Playwright drives Debian's browser; it needs none of its own.
browser:
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium; \
	  else \
	    echo "Note: tests of pages need Chromium. On Debian: sudo apt-get install chromium" >&2; \
	  fi; }

bench: .venv/test.stamp
	$(BIN)/python -m benchmarks $(ARGS)

venv: .venv/test.stamp

# A stamp is written last: an install that was cut short is done again.
.venv/demo.stamp: .venv/made.stamp $(DECLARED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

.venv/test.stamp: .venv/made.stamp $(DECLARED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ .venv/demo.stamp  # the tests need what the demo needs

# Debian and Ubuntu keep what makes a virtualenv in a package of its own, python3-venv.
.venv/made.stamp:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "Error: there is no $(PYTHON). Install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Error: $(PYTHON) is $$($(PYTHON) --version 2>&1), and 3.10 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy python3-venv; \
	  else \
	    echo "Error: $(PYTHON) cannot make a virtualenv. On Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; \
	  fi; }
	$(PYTHON) -m venv .venv
	@touch $@
