# quickstart: learn when to ask, and prove it in closed loop (minutes on two cores).  test: run the tests.
# science: every router, and the ablation tables, on top of the quickstart (some 15 minutes more).
.PHONY: quickstart science test check lint types package clean

EXTRAS ?= train,serve,dev

quickstart:
	@scripts/setup.sh train
	.venv/bin/r2v run examples/household.yaml --out runs/quickstart

science: quickstart
	.venv/bin/r2v run examples/household.yaml --out runs/quickstart --set routers=all --set evaluate.clairvoyant=400
	.venv/bin/r2v ablate runs/quickstart

# On two cores, a file each. What fails there, because a busy machine answered late, has to pass alone.
test:
	@scripts/setup.sh $(EXTRAS)
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder || .venv/bin/python -m pytest --last-failed

# What CI runs, in its order.
check: lint types package test

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

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
