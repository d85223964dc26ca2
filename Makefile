# `make demo` and `make test` install what they need: Debian's python3-venv if the
# interpreter cannot make a virtual environment, and the locked packages into .venv.
# `make test` also installs Debian's fuse3, with which devices are imitated, and postgresql, as a store.
# The system's Python is never touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench load fuzz mutation proof docs clean lock install

demo: $(STAMP)
	@$(BIN)/conclave demo

test: $(VENV)/.dev $(VENV)/.system
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.dev
	@$(BIN)/ruff check src tests fuzz mutation proof bench examples vectors docs
	@$(BIN)/ruff format --check src tests fuzz mutation proof bench examples vectors docs
	@$(BIN)/mypy

bench: $(STAMP) $(VENV)/.bench
	@for f in bench/bench_*.py; do $(BIN)/python $$f || exit 1; done

# Coverage-guided, SECONDS for each target; `make fuzz TARGETS=wheel SECONDS=600` for one.
SECONDS ?= 60
TARGETS ?= $$($(BIN)/python -m fuzz)
fuzz: $(VENV)/.dev $(VENV)/.fuzz
	@for t in $(TARGETS); do $(BIN)/python -m fuzz $(SECONDS) $$t || exit 1; done

# Many clients, kills, full stores and whatever else goes wrong, at full size, each for SECONDS at least, with figures.
load: $(VENV)/.dev
	@CONCLAVE_LOAD_SECONDS=$(SECONDS) $(BIN)/python -m pytest -q -s --durations=0 --durations-min=1 tests/load

# Every check of the verifier, of mail and of bundles taken out in turn; none may go unnoticed. Some minutes.
mutation: $(VENV)/.dev
	@$(BIN)/python -m mutation

# Rollback and fork detection: every schedule of 8 steps, and each rule taken away. Minutes.
proof: $(VENV)/.dev
	@$(BIN)/python -m proof

# The manual, into site/.
docs: $(VENV)/.dev
	@$(BIN)/mkdocs build --strict --quiet

install: $(STAMP)

$(STAMP): requirements/run.lock pyproject.toml
	@sh requirements/install.sh "$(PYTHON)" "$(VENV)" requirements/run.lock
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(STAMP)
	@sh requirements/install.sh "$(PYTHON)" "$(VENV)" requirements/dev.lock
	@touch $@

$(VENV)/.system: requirements/install.sh $(STAMP)
	@sh requirements/install.sh --system fuse3 postgresql
	@touch $@

$(VENV)/.fuzz: requirements/fuzz.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.lock
	@touch $@

$(VENV)/.bench: requirements/bench.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.lock
	@touch $@

# Only this target resolves versions. No index address is written into a lock.
lock:
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		pyproject.toml --extra build --group install -o requirements/run.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		pyproject.toml --extra build --extra s3 --extra postgres --group dev -c requirements/run.lock -o requirements/dev.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		pyproject.toml --group bench -c requirements/dev.lock -o requirements/bench.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		pyproject.toml --group fuzz -c requirements/dev.lock -o requirements/fuzz.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
