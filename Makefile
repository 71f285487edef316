# kd_d2: `make demo` and `make test` work from a fresh clone; `make help` lists everything.
#
# They make an environment of their own in .venv, once (tools/install.py). To use one that you have,
# name its folder:
#     make VENV=/path/to/env test
# Nothing is ever installed there; it needs torch, torchvision, Detectron2 and, for lint and test,
# the packages that setup.py lists under `test`. kd_d2 itself is taken from this checkout.
#
# PYTHON=python3.12             the Python that .venv is made with
# DETECTRON2_SOURCE=git|pypi    where Detectron2 comes from (tools/install_detectron2.py)
# PYTEST_ARGS="-k lgd"          handed on to pytest
# TEST_WORKERS=4                processes that the tests are shared among, a thread each

PYTHON ?= python3
VENV ?=
PYTEST_ARGS ?=
TEST_WORKERS ?= 2

ifeq ($(strip $(VENV)),)
RUN := .venv/bin/python
environment: own-environment
else
RUN := $(VENV)/bin/python
environment: given-environment
endif

# A checkout that is not installed works, too.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: help environment own-environment given-environment demo test lint format check clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make demo     train a detector plainly and taught by its labels; report in output/demo"
	@echo "make test     lint, then all tests"
	@echo "make lint     ruff: check and format --check"
	@echo "make format   ruff: repair and format"
	@echo "make check    print the environment and take one distillation step"
	@echo "make clean    remove caches; make distclean: .venv, too"
	@echo
	@echo "VENV=/path/to/env uses an environment of yours as it is; the other settings are"
	@echo "explained at the top of the Makefile."

# Always started, because only it can tell whether its stamp still fits; ends at once if so.
own-environment:
	@env -u PYTHONPATH $(PYTHON) tools/install.py

given-environment:
	@test -x "$(RUN)" || { echo "VENV=$(VENV): there is no $(RUN)."; exit 1; }

demo: environment
	$(RUN) tools/demo.py

lint: environment
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

format: environment
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

check: environment
	$(RUN) -m kd_d2.check

clean:
	rm -rf .pytest_cache .ruff_cache build dist *.egg-info
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
