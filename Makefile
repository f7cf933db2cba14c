# quickstart: learn when to escalate, and play the result in closed loop (minutes on two cores).
# quick: the tests of the inner loop (under two minutes).  test: all tests.  check: what CI runs.
# test-postgres: the gateway's tests once more, on Postgres.
# science: every router, and the ablation tables, on top of the quickstart (some 15 minutes more).
# readme-table: README's results, from the files of RUN and (if given) FRESH, a folder of `r2v evaluate`.
# real: the experiment with two real models, served here; hours, and goes on where it ended (MINUTES=60: for so long).
# real-replay: the same from the answers that were recorded, without the models.
# clients: other people's agent programs, at pinned versions, through the gateway.  clients-latest: the newest ones.
# mutants: how many small faults the tests notice, by room (hours; ROOMS=core SAMPLE=100 makes it shorter).
.PHONY: quickstart science readme-table real real-replay quick test test-postgres check lint types package clients clients-latest mutants clean

EXTRAS ?= train,serve,postgres,bench,dev
# One thread a process: two processes share two cores, and threads that wait for each other take many times as long.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2
# What a gateway does that may depend on where its ledger is. Those of the shared ledger itself have a Postgres of their own.
GATEWAY_TESTS = $(filter-out tests/test_gateway_postgres.py,$(wildcard tests/test_gateway*.py)) \
  $(addprefix tests/,test_budgets.py test_tenancy.py test_verdicts.py test_rules.py test_tool_text.py)
ROOMS ?= core routers gateway evaluation
SAMPLE ?= 1000000
RUN ?= runs/quickstart
MINUTES ?=
FRESH ?=

quickstart:
	@scripts/setup.sh train
	.venv/bin/r2v run examples/household.yaml --out runs/quickstart

science: quickstart
	.venv/bin/r2v run examples/household.yaml --out runs/quickstart --set routers=all --set evaluate.clairvoyant=400
	.venv/bin/r2v ablate runs/quickstart

readme-table:
	.venv/bin/python scripts/readme_table.py $(RUN) $(if $(FRESH),--fresh $(FRESH))

real real-replay: export HUMANEVAL_OVERRIDE_PATH ?= ../shared/data/humaneval/HumanEvalPlus.jsonl.gz

real:
	@scripts/setup.sh train
	test -d .models-venv || { python3 -m venv .models-venv && .models-venv/bin/pip install --quiet xllamacpp==2026.10.11549; }
	.venv/bin/python benchmarks/real_models.py record examples/humaneval-real.yaml --out runs/real --python .models-venv/bin/python $(if $(MINUTES),--minutes $(MINUTES))

real-replay:
	@scripts/setup.sh train
	.venv/bin/r2v run examples/humaneval-real.yaml --out runs/real

quick:
	@scripts/setup.sh $(EXTRAS)
	$(PYTEST) --dist worksteal -m quick --durations=10 --durations-min=2

# A file stays in one process: whole runs that its tests share are made once.
test:
	@scripts/setup.sh $(EXTRAS)
	$(PYTEST) --dist loadfile --no-loadscope-reorder

# The gateway's tests once more, with every ledger shipped to a Postgres and read there.
test-postgres:
	@scripts/setup.sh $(EXTRAS)
	R2V_TEST_POSTGRES=1 $(PYTEST) --dist loadfile --no-loadscope-reorder $(sort $(GATEWAY_TESTS))

# What CI runs, in its order.
check: lint types package test test-postgres

lint:
	@scripts/setup.sh $(EXTRAS)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types:
	@scripts/setup.sh $(EXTRAS)
	.venv/bin/mypy

package:
	@scripts/setup.sh $(EXTRAS)
	.venv/bin/python scripts/package.py

clients:
	@scripts/setup.sh $(EXTRAS)
	.venv/bin/python tests/agents/install.py .clients
	.venv/bin/python -m pytest -n 2 --dist worksteal --durations=10 tests/agents

clients-latest:
	@scripts/setup.sh $(EXTRAS)
	.venv/bin/python tests/agents/install.py .clients-latest --latest
	R2V_CLIENTS=.clients-latest .venv/bin/python -m pytest -n 2 --dist worksteal tests/agents

mutants:
	@scripts/setup.sh $(EXTRAS)
	.venv/bin/python scripts/mutate.py $(ROOMS) --sample $(SAMPLE)

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
