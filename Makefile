# The same short verbs here and in CI. Everything happens inside .venv; pip's own settings
# (PIP_INDEX_URL, PIP_FIND_LINKS, ...) are left to the environment.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := 2> >(grep -v ^WARNING: >&2) $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
# Of pip's many lines those that show that it gets on: what we pinned, what is big, the end.
PROGRESS := awk '/^Collecting.*\(from -r/ { print "      " $$2; fflush() } \
	/^ *Downloading .*[0-9][0-9][0-9][.0-9]* MB/ { print "      downloading " $$2 " " $$3 " MB)"; fflush() } \
	/^Installing collected/ { print "      unpacking " NF - 3 " packages"; fflush() }'
ARGS ?=
CAMPAIGNS ?= share
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
SHELL := bash
.SHELLFLAGS := -o pipefail -c

.DEFAULT_GOAL := help
.PHONY: help install venv models build serve up down test test-all coverage check format bench clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

# Recipes that take minutes: built behind what is served, and loaded when they are ready.
LATER := $(patsubst model_repository/%/recipe.toml,%,$(wildcard model_repository/chat/recipe.toml))

serve: install  ## serve the models and show that they answer; Ctrl-C ends it
	@$(BIN)/python -m build_scripts.build $(LATER:%=--except=%)
	@exec $(BIN)/python -m server --demo --openai $(LATER:%=--build=%) $(ARGS)

up:  ## the same in containers, with nginx, Prometheus and Grafana (ARGS: services, options)
	@$(COMPOSE) build
	@$(COMPOSE) up --detach $(ARGS)
	@$(COMPOSE) exec -T -e HOST=front triton python -m clients.embed "How do I reset my password?" "I forgot my login"
	@for page in "front 8000 HTTP" "front 8001 gRPC" "front 8004 OpenAI" "front 8443 TLS" "prometheus 9090 Prometheus" "alertmanager 9093 Alertmanager" "grafana 3000 Grafana"; do \
		set -- $$page; at=$$($(COMPOSE) port $$1 $$2 2>/dev/null) && [ -n "$$at" ] && printf '  %-12s %s\n' "$${3/_/ }" "$$at"; done; true

down:  ## end and remove what `up` started; the volumes stay (ARGS=--volumes takes them, too)
	@$(COMPOSE) down $(ARGS)

# Two workers, as most tests wait for processes; which run beside each other: tests/support/workers.py. What hangs ends the run.
test: venv models  ## the tests: unit, process, engines, Triton, hosts, deploy
	@exec $(BIN)/python -m pytest -m "not campaign" $(if $(ARGS),$(ARGS),-n 2 --max-worker-restart 0)

# With `-v` and times: what takes minutes has a line when it begins, and one with its seconds.
test-all: venv models  ## the same, and a share of the long campaigns by chance (CAMPAIGNS=whole: all)
	@CAMPAIGNS=$(CAMPAIGNS) exec $(BIN)/python -m pytest -v --override-ini console_output_style=times --durations=20 $(ARGS)

coverage: venv models  ## branches that unit, process and engine tests reach
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(BIN)/python -m coverage run -m pytest -m "not campaign" tests/unit tests/process tests/engines $(ARGS)
	@$(BIN)/python -m coverage combine --quiet && $(BIN)/python -m coverage report

check: venv  ## format, lint, types, and the files of deploy/
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@bash deploy/check.sh

format: venv  ## bring the sources into form
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: venv build  ## the benchmarks: collectives, one block, end to end
	@exec $(BIN)/python -m benchmarks $(ARGS)

models: install  ## what is served, built and verified where missing or stale
	@$(BIN)/python -m build_scripts.build

build: install  ## the same, and all other engines that the recipes name
	@$(BIN)/python -m build_scripts.build --variants

install: .venv/.installed  ## what serving needs, in .venv
venv: .venv/.developer  ## and what tests and checks need

.venv/.installed: requirements.txt requirements-serving.txt requirements-embedded.txt requirements-gateway.txt requirements-checkpoint.txt pyproject.toml $(wildcard backends/python_mp/python_mp/rank/shm/*) $(wildcard backends/python_mp/python_mp/sharding/kernels/*)
	@sh server/preflight.sh "$(PYTHON)"
	@echo "[1/3] virtual environment in .venv"
	@test -x $(BIN)/pip || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@echo "[2/3] pinned dependencies (torch and Triton: some minutes the first time)"
	@$(PIP) -r requirements.txt | $(PROGRESS)
	@$(PIP) --no-deps -r requirements-checkpoint.txt | $(PROGRESS)
	@echo "[3/3] this project, with its C extensions"
	@$(PIP) -qq --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.developer: .venv/.installed requirements-dev.txt requirements-ray.txt requirements-modelopt.txt
	@echo "[dev] dependencies of tests and checks"
	@$(PIP) -r requirements-dev.txt | $(PROGRESS)
	@$(PIP) --no-deps -r requirements-modelopt.txt | $(PROGRESS)
	@touch $@

clean:  ## remove the environment, the build's leftovers and the caches
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f backends/python_mp/python_mp/rank/*.so backends/python_mp/python_mp/sharding/*.so
