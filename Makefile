# One small command per chore; .ci/run calls the same. Try: make demo, make test
PYTHON ?= python3
PIP_ARGS ?=
MINUTES ?= 10
VENV := .venv
BENCHES := average ema_update combine ensemble selection bootstrap train tta
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test check format docs bench peers integrations floors long fuzz fuzzed clean

demo: $(READY)  ## the main job on embedded real data, in minutes
	@$(VENV)/bin/polyfuse demo $(ARGS)

test: $(READY)  ## all tests, one process a core
	@PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n auto --dist worksteal $(ARGS)

check: $(READY)  ## style, types, import directions, docs
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m pytest -q tests/test_layers.py tests/test_exports.py
	@$(MAKE) --no-print-directory docs

format: $(READY)
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

docs: $(READY)
	@$(PY) -m sphinx -W -q -b html docs docs/_build/html && echo "docs: docs/_build/html/index.html"

bench: $(READY)  ## benchmarks; with the peers where `make peers` has made their environment
	@for file in benchmarks/bench_*.py $(BENCHES:%=benchmarks/%.py); do echo "== $$file"; $(PY) $$file || exit 1; done

peers:  ## peer packages for benchmarks and parity, in environments of their own
	@sh benchmarks/make_peers.sh $(PYTHON) .venv-peers .venv-mergekit

integrations:  ## the tests with Lightning, Transformers and Ray, in an environment of their own
	@$(PYTHON) -m venv --without-pip .venv-integrations
	@$(PYTHON) -m pip --python .venv-integrations/bin/python install -q --disable-pip-version-check \
	  $(PIP_ARGS) -c constraints.txt -e '.[dev,integrations]'
	@.venv-integrations/bin/python -m pytest -n auto tests/integrations tests/metrics tests/checkpoints/layouts \
	  tests/predictions tests/stacking/test_stacking_documents.py $(ARGS)
	@.venv-integrations/bin/python -m pytest tests/runners/test_ray_*.py $(ARGS)

floors:  ## the tests on the lowest versions that pyproject.toml allows
	@$(PYTHON) -m venv --without-pip .venv-floors
	@$(PYTHON) -m pip --python .venv-floors/bin/python install -q $(PIP_ARGS) -c floors.txt -e '.[dev]'
	@.venv-floors/bin/python -m pytest -n auto --dist worksteal $(ARGS)

long: $(READY)  ## what every strategy gains over seeds, and a recipe of each
	@$(PY) -m pytest -q -n auto --dist worksteal -m long tests/training $(ARGS)

fuzzed: $(READY)  ## a hundred thousand mutated checkpoints for each reader, always the same
	@$(PY) -m pytest -q -n auto -m fuzz tests/checkpoints $(ARGS)

fuzz: $(READY)  ## mutated checkpoints for both readers, as long as you like: make fuzz MINUTES=60
	@$(PY) tests/checkpoints/fuzz.py --minutes $(MINUTES)

clean:
	rm -rf $(VENV) .venv-peers .venv-mergekit .venv-integrations .venv-floors docs/_build .mypy_cache .ruff_cache .pytest_cache

# Made once; again only when what is required changes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "polyfuse needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "installing into $(VENV) (once) ..."
	@$(PYTHON) -m venv --without-pip $(VENV)
	@$(PYTHON) -m pip --python $(PY) install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@
