# make demo    install, then label the quickstart's dictionary into demo/
# make bench   time extraction against its floor, with a long run for the steady state (about 40 minutes on 2 cores)
# make test    install what tests need, check types, lint and imports, run the tests without network
#              (in three processes on two cores, since many tests wait for processes that they start)
# make test-long   the longer tests, which make test leaves out (12 minutes on 2 cores)
# make bench-cluster   a run of a million latents on real Redis, PostgreSQL and workers; exports and writes of a million rows
# make chaos   kill, stop, cut off and restart processes, broker and database; writes docs/chaos.md (about 30 minutes; an hour more
#              of random faults: make chaos-hour)
# make vllm    a real vLLM on the CPU, in an environment of its own, asked over HTTP and in process (docs/vllm.md)
# The environment is kept in .venv; a second call is quick.

PY ?= python3
BIN := .venv/bin
TORCH_INDEX ?=
# pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) hold; TORCH_INDEX adds one more index for torch
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# hundreds of processes take part in the tests: they compile the same modules once
test test-long check chaos chaos-hour: export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-long check bench bench-cluster chaos chaos-hour vllm clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/autointerp run examples/quickstart.toml --out demo

test: check
	HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 $(BIN)/python -m pytest -n 3 --dist loadfile -m "not long and not chaos" --ignore tests/test_import_table.py

test-long: .venv/installed-test
	HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 $(BIN)/python -m pytest -n 3 --dist loadfile -m "long and not chaos" $(LONG_ARGS)

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not long" tests/test_import_table.py

bench: .venv/installed
	$(BIN)/autointerp bench extraction --steady-tokens 4194304

bench-cluster: .venv/installed-test
	$(BIN)/python -m benchmarks.cluster_million
	$(BIN)/python -m benchmarks.export_million
	$(BIN)/python -m benchmarks.store_writes

chaos: .venv/installed-test
	rm -f .chaos.jsonl
	HF_HUB_OFFLINE=1 CHAOS_RECORD=$(CURDIR)/.chaos.jsonl $(BIN)/python -m pytest tests/chaos
	$(BIN)/python -m tests.chaos.report .chaos.jsonl .chaos-hour.jsonl > docs/chaos.md

chaos-hour: .venv/installed-test
	rm -f .chaos-hour.jsonl
	HF_HUB_OFFLINE=1 CHAOS_RECORD=$(CURDIR)/.chaos-hour.jsonl CHAOS_SOAK_S=3600 $(BIN)/python -m pytest tests/chaos/test_soak.py -o timeout=5400 -s
	$(BIN)/python -m tests.chaos.report .chaos.jsonl .chaos-hour.jsonl > docs/chaos.md

vllm:
	examples/vllm/check.sh .venv-vllm $(PY)

clean:
	rm -rf .venv .venv-vllm demo

.venv/made:
	$(PY) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "autointerp needs Python 3.11 or newer, and $(PY) is " + sys.version.split()[0] + ": give another one, make PY=python3.12")'
	$(PY) -m venv .venv
	touch $@

.venv/installed: pyproject.toml .venv/made
	$(PIP) -e .
	touch $@

.venv/installed-test: pyproject.toml .venv/installed
	$(PIP) -e '.[test]'
	touch $@
