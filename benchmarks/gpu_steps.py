"""The steps of `gpu_check`, in their order. A step is a command, what it needs, and how long it may take.

In commands PYTHON is this interpreter, OUT the folder of results and NAME the step's name; a step with figures writes
them to OUT/NAME.json. Each takes minutes at most, so that a machine which is lent for ten at a time gets through, and
what says most comes first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec

TESTS = "PYTHON -m pytest -p no:cacheprovider -rfEs -m gpu"
# Most of their time goes into compiling Triton kernels, on one core each.
KERNEL_TESTS = "PYTHON -m pytest -p no:cacheprovider -rfE" + (
    f" -n {min(8, os.cpu_count() or 1)}" if find_spec("xdist") else "")
BENCH = "--device cuda --seconds 0.3 --out OUT/NAME.json"
BF16 = "model.dtype=bfloat16 rollout.canary=0.1"
# Always in the same place: what vLLM has compiled it finds again by the model's path.
TOY = f"{BF16} model.path=OUT/toy/model data.train=[OUT/toy/train.jsonl]"


@dataclass(frozen=True)
class Step:
    name: str
    command: str
    needs: tuple[str, ...] = ()
    """See gpu_host.Host.lacks."""
    limit: int = 240
    """Seconds."""
    env: dict[str, str] = field(default_factory=dict)


TRAINER = ("module:pydantic", "module:math_verify")
SMOLLM2 = ("file:data/smollm2/train.jsonl",)
RUN = "runs/gpu-check-smollm2-$SRPO_COMMIT"  # or another commit would report the steps that this one took
ENGINE = ("module:vllm", "module:megatron.core", *TRAINER)

STEPS = [
    Step("build", "PYTHON setup.py build_ext --inplace", ("tool:nvcc",), 460, {"SRPO_REQUIRE_EXT": "1"}),
    Step("test-gpu", f"{TESTS} tests/kernels/test_kernels_gpu.py", ("module:pytest",)),
    Step("test-triton", f"{KERNEL_TESTS} tests/kernels/test_kernels_triton.py", ("module:pytest", "module:hypothesis"),
         460),

    # Kernels against their floor and their peers.
    Step("bench-loss-backward", f"PYTHON -m benchmarks.bench_policy_loss --filter 'backward (?!.*32768)' {BENCH}",
         limit=460),
    Step("bench-loss-forward", f"PYTHON -m benchmarks.bench_policy_loss --filter 'forward (?!.*32768)' {BENCH}",
         limit=460),
    Step("bench-logprob-backward", f"PYTHON -m benchmarks.bench_logprob --filter 'backward (?!.*32768)' {BENCH}",
         limit=460),
    Step("bench-logprob-forward", f"PYTHON -m benchmarks.bench_logprob --filter 'forward (?!.*32768)' {BENCH}",
         limit=460),
    Step("bench-linear-qwen", f"PYTHON -m benchmarks.bench_linear --filter 'bf16 8192x152064x5120$' {BENCH}",
         limit=460),
    Step("bench-linear-memory", "PYTHON -m benchmarks.step_memory cuda 0 32768x152064x5120"),
    Step("bench-logprob-long", f"PYTHON -m benchmarks.bench_logprob --filter 32768 {BENCH}"),
    Step("bench-loss-long", f"PYTHON -m benchmarks.bench_policy_loss --filter 32768 {BENCH}"),
    # A rank's shard of 152,064 columns on 2, 4 and 8 ranks.
    Step("bench-logprob-shards", "PYTHON -m benchmarks.bench_logprob --shapes 8192x76032,8192x38016,8192x19008 "
         f"--filter 'bf16 [0-9x]+$' {BENCH}"),
    Step("bench-loss-shards", "PYTHON -m benchmarks.bench_policy_loss --shapes 8192x76032,8192x38016,8192x19008 "
         f"--filter 'bf16 [0-9x]+$' {BENCH}"),
    Step("bench-linear-models", "PYTHON -m benchmarks.bench_linear --filter "
         f"'bf16 8192x(151936x1536|128256x4096|49152x576)$' {BENCH}", limit=460),
    Step("bench-linear-rows", f"PYTHON -m benchmarks.bench_linear --filter 'bf16 (1|1024|32768)x' {BENCH}", limit=460),
    Step("bench-linear-kinds", f"PYTHON -m benchmarks.bench_linear --filter 'masked|ragged|frozen|fp16|fp32' {BENCH}",
         limit=460),
    Step("bench-advantage", f"PYTHON -m benchmarks.bench_advantage {BENCH}"),

    # The kernel test suite with its tensors on the GPU.
    Step("test-cuda", f"{TESTS} tests/kernels/test_kernels_cuda.py", ("module:pytest", "step:build"), 460),
    *(Step(f"test-{name}", f"{KERNEL_TESTS} tests/kernels/test_kernels_{name}.py",
           ("module:pytest", "module:hypothesis", *(("step:build",) if name == "logprob" else ())), 300,
           {"SRPO_TEST_DEVICE": "cuda"})
      for name in ("policy_loss", "linear", "one_pass", "logprob", "advantage", "compile")),

    # The trainer.
    Step("test-run", f"{TESTS} tests/end_to_end/test_gpu.py", ("module:pytest", *ENGINE), 460),
    *(Step(name, f"PYTHON -m srpo.data.toy OUT/toy && PYTHON -m benchmarks.bench_{name} {TOY} --out OUT/NAME.json",
           ENGINE, 460) for name in ("step", "canary", "memory")),
    Step("rollout", "PYTHON -m benchmarks.bench_rollout --dtype bfloat16 --minutes 0.05 --out OUT/NAME.json", ENGINE,
         460),
    *(Step(name, f"{TESTS} {file}", ("module:pytest", *ENGINE), 460) for name, file in (
        ("test-offload", "tests/distributed/test_offload.py"),
        ("test-memory", "tests/distributed/test_plan_memory.py"))),
    Step("sync", "PYTHON -m benchmarks.bench_sync --out OUT/NAME.json", ("gpus:2", "module:transformers", *TRAINER)),
    *(Step(f"smollm2-{part}", f"PYTHON -m benchmarks.bench_{part} --config configs/smollm2.yaml {BF16} "
           "batch.micro_batch=64 --out OUT/NAME.json", (*ENGINE, *SMOLLM2), 460)
      for part in ("step", "canary")),
    Step("smollm2-trl", f"PYTHON -m benchmarks.bench_trl --config configs/smollm2.yaml {BF16} batch.micro_batch=64 "
         "--steps 30 --out OUT/NAME.json", ("module:vllm", "module:trl", *TRAINER, *SMOLLM2), 460),
    # Stops by itself and goes on in the next run (gpu_check.MORE), until the model is there.
    Step("smollm2-train", f"timeout --preserve-status -s TERM 420 PYTHON -m srpo train configs/smollm2.yaml run={RUN} "
         f"{BF16} batch.micro_batch=64 checkpoint.every=50 "
         "'stages=[{name: gsm8k, domains: [math], until: steps, steps: 100}]' "
         f"&& cp {RUN}/metrics.jsonl OUT/NAME.jsonl && {{ [ -d {RUN}/hf ] || exit 75; }}", (*ENGINE, *SMOLLM2), 475),

    # Slow, so last: the kernels under compute-sanitizer, and with other tiles than those that were measured.
    *(Step(f"{tool}-{kernel}", f"compute-sanitizer --tool {tool} --error-exitcode 9 PYTHON -m benchmarks.gpu_kernels "
           f"{kernel}", ("tool:compute-sanitizer", *(("step:build",) if kernel.endswith("cpp") else ())), 300,
           # Each tensor an allocation of its own, or what lies beyond it is torch's too.
           {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
      for kernel in ("policy_loss", "statistics", "scale", "linear", "advantage", "statistics-cpp")
      for tool in ("memcheck", "racecheck", "initcheck")),
    *(Step(f"tiles-{name}", f"PYTHON -m benchmarks.bench_tiles --filter ' ({fields}) ' --out OUT/NAME.json", needs, 460)
      for name, fields, needs in (
          ("statistics", "statistics|gradient", ()), ("loss", "loss|loss_small|l2_share", ()),
          ("rest", "loss_forward|scale|advantage", ()), ("cuda", "cuda", ("tool:nvcc",)))),
]
