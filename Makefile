# Each target works on a fresh clone: the virtual environment is made on the way.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo test test-v2 lint bench

demo: .venv/installed
	@$(BIN)/python demo/demo.py

test: .venv/installed
	$(BIN)/python -m pytest $(ARGS)

# Each kind of cgroups, in machines of user-mode-linux; ARGS chooses some (v2 v2-user v1 ... none-user).
test-v2: .venv/installed
	$(BIN)/python tests/machines/run_all.py $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# The path: pyright does not follow the import hook of an editable install.
	PYTHONPATH=. $(BIN)/pyright --pythonpath $(BIN)/python --verifytypes muontrap --ignoreexternal
	$(BIN)/reuse lint --quiet || $(BIN)/reuse lint

bench: .venv/installed
	$(BIN)/python bench/launch.py
	$(BIN)/python bench/killtime.py
	$(BIN)/python bench/import.py
	$(BIN)/python bench/cgroup.py
	$(BIN)/python bench/throughput.py
	$(BIN)/python bench/many.py
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python bench/supervise.py

.venv/installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: try  apt install python3 python3-venv  or  make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("muontrap needs Python 3.10 or later, this is " + sys.version + ": try  make PYTHON=python3.12")'
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "$(PYTHON) lacks its venv module: try  apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@
