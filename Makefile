# excise: `make demo` runs it, `make test` tests it; both set up by themselves. Needs Python 3.11 (or 3.12) with venv, and pip's
# package index; nothing else. Another interpreter: make PYTHON=/path/to/python3.11 ...

PYTHON ?= $(or $(firstword $(foreach name,python3.11 python3.12 python3,$(shell command -v $(name)))),python3.11)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOM := 9
# GB that the installation takes, with what pip unpacks beside it: 7.7 in the end, nearly all of it torch.

# Where it is set, every process of a deployment's tests would compile all of excise anew before it begins.
unexport PYTHONDONTWRITEBYTECODE

# What tests and benchmarks ask of the machine: images, a real PACS, a second reader of DICOM, a coordinator's proxy, a browser, its
# other database. Each is installed where it is missing. Here, since prerequisites are read where they stand.
FASHION := /usr/share/datasets/fashion-mnist
DICOMWEB := /usr/share/orthanc/plugins/libOrthancDicomWeb.so
DCMTK := /usr/bin/dcmj2pnm
NGINX := /usr/sbin/nginx
CHROMIUM := /usr/bin/chromium
POSTGRES := /usr/bin/pg_lsclusters

.DEFAULT_GOAL := help
.PHONY: help setup demo bench bench-quick bench-demo bench-engine bench-ingest bench-privacy bench-soak bench-scale bench-dashboard test test-faults check clean

help:
	@echo "make setup         install into $(VENV): several GB (torch), a few minutes the first time"
	@echo "make demo          unlearn one scanner at one of four simulated hospitals; writes runs/<id>/report.html"
	@echo "make bench         the field's methods on every scenario, many hours, goes on where it was; writes docs/results/benchmark.md"
	@echo "make bench-quick   the same on two scenarios with settings as they are, two at once, half an hour; writes below runs/bench-quick"
	@echo "make bench-demo    the same over five seeds, and by patient over three, with baselines; writes docs/results/brain-mri*.md"
	@echo "make bench-engine  speed and quality of the engine on Fashion-MNIST; writes docs/results/engine.md"
	@echo "make bench-ingest  speed and memory of reading DICOM; writes docs/results/ingest.md"
	@echo "make bench-privacy what clipped, noised and sparse updates cost; writes docs/results/privacy.md"
	@echo "make bench-soak    memory of 50 sites over 200 rounds, a quarter of an hour; writes docs/results/soak.md"
	@echo "make bench-scale   time, memory and bytes from 4 to 1,000 sites, a quarter of an hour; writes docs/results/scale.md"
	@echo "make bench-dashboard 50 viewers of a busy coordinator's dashboard, a quarter of an hour; writes docs/results/dashboard.md"
	@echo "make test          run the tests; installs Orthanc, dcmtk, nginx, PostgreSQL and Chromium if missing"
	@echo "make test-faults   kill every process of a deployment at every stage of a run; takes root and most of an hour"
	@echo "make check         check format, lint and types"
	@echo "make clean         remove caches and build outputs; keeps $(VENV) and runs"

setup: $(STAMP)

# The stamp is written last, so an interrupted set-up is taken up again. constraints.txt holds the releases that we test;
# without them pip would take the newest that pyproject.toml allows.
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || { \
	  echo "excise needs Python 3.11 or 3.12; found: $$("$(PYTHON)" --version 2>&1 || true)" >&2; \
	  echo "Install python3.11 (on Debian: python3.11 and python3.11-venv) or name one: make PYTHON=/path/to/python3.11 setup" >&2; \
	  exit 1; }
	@free=$$(df -P -k . | awk 'NR == 2 {print int($$4 * 1024 / 1e9)}'); [ -e $(VENV) ] || [ "$$free" -ge $(ROOM) ] || { \
	  echo "excise needs $(ROOM) GB of disk to be installed, nearly all of it for torch; free here: $$free GB" >&2; \
	  echo "Make room, or clone to where there is some" >&2; \
	  exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt --editable '.[demo,dev]'
	@touch $@

demo: setup
	$(BIN)/excise simulate brain-mri

bench-demo: setup
	$(BIN)/excise bench demo brain-mri
	$(BIN)/excise bench demo brain-mri-patients --seeds 3

$(FASHION):
	apt-get update && apt-get install --yes dataset-fashion-mnist

bench-engine: setup | $(FASHION)
	$(BIN)/excise bench engine
	$(BIN)/excise bench profile

bench-ingest: setup
	$(BIN)/excise bench ingest

bench: setup | $(FASHION)
	$(BIN)/excise bench --full
	$(BIN)/excise bench report

# A command computes on one core: two at once, a scenario each.
quick-%: setup | $(FASHION)
	$(BIN)/excise bench --quick --scenario $* --home runs/bench-quick

bench-quick: setup
	$(MAKE) --jobs 2 quick-brain-mri quick-fashion-10-percent
	$(BIN)/excise bench report --home runs/bench-quick --page runs/bench-quick/benchmark.md

bench-privacy: setup
	$(BIN)/excise bench privacy

bench-soak: setup
	$(BIN)/excise bench soak

bench-scale: setup
	$(BIN)/excise bench scale

bench-dashboard: setup | $(CHROMIUM)
	$(BIN)/excise bench dashboard

$(DICOMWEB):
	apt-get update && apt-get install --yes orthanc-dicomweb

$(DCMTK):
	apt-get update && apt-get install --yes dcmtk

$(POSTGRES):
	apt-get update && apt-get install --yes postgresql

$(CHROMIUM):
	apt-get update && apt-get install --yes chromium

$(NGINX):
	apt-get update && apt-get install --yes nginx-light

test: setup | $(DICOMWEB) $(DCMTK) $(NGINX) $(POSTGRES) $(CHROMIUM)
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-faults: setup | $(NGINX)
	$(BIN)/pytest tests/faults

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/python scripts/typecheck.py

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
