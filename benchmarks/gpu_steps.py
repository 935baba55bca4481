"""The steps of `gpu_check`, in their order. A step is a command, what it needs, and how long it may take.

In commands PYTHON is this interpreter, OUT the folder of results and NAME the step's name; a step with figures writes
them to OUT/NAME.json. Each takes minutes at most, so that a machine which is lent for ten at a time gets through.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TESTS = "PYTHON -m pytest -p no:cacheprovider -rfEs -m gpu"
KERNEL_TESTS = ("logprob", "policy_loss", "linear", "one_pass", "advantage", "compile")
BENCH = "--device cuda --seconds 0.3 --out OUT/NAME.json"
BF16 = "model.dtype=bfloat16 rollout.canary=0.1"


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
RUN = "runs/gpu-check-smollm2"
ENGINE = ("module:vllm", "module:megatron.core", *TRAINER)

STEPS = [
    Step("build", "PYTHON setup.py build_ext --inplace", ("tool:nvcc",), 460, {"SRPO_REQUIRE_EXT": "1"}),

    # Correctness.
    Step("test-gpu", f"{TESTS} tests/kernels/test_kernels_gpu.py", ("module:pytest",)),
    Step("test-cuda", f"{TESTS} tests/kernels/test_kernels_cuda.py", ("module:pytest", "step:build"), 460),
    Step("test-triton", "PYTHON -m pytest -p no:cacheprovider -rfE tests/kernels/test_kernels_triton.py",
         ("module:pytest", "module:hypothesis"), 460),
    *(Step(f"test-{name}",
           f"PYTHON -m pytest -p no:cacheprovider -rfE -k 'not cpp' tests/kernels/test_kernels_{name}.py",
           ("module:pytest", "module:hypothesis"), 300, {"SRPO_TEST_DEVICE": "cuda"}) for name in KERNEL_TESTS),

    # Kernels against their floor and their peers.
    Step("bench-advantage", f"PYTHON -m benchmarks.bench_advantage {BENCH}"),
    Step("bench-logprob-forward", f"PYTHON -m benchmarks.bench_logprob --filter 'forward (?!.*32768)' {BENCH}",
         limit=460),
    Step("bench-logprob-backward", f"PYTHON -m benchmarks.bench_logprob --filter 'backward (?!.*32768)' {BENCH}",
         limit=460),
    Step("bench-loss-forward", f"PYTHON -m benchmarks.bench_policy_loss --filter 'forward (?!.*32768)' {BENCH}",
         limit=460),
    Step("bench-loss-backward", f"PYTHON -m benchmarks.bench_policy_loss --filter 'backward (?!.*32768)' {BENCH}",
         limit=460),
    Step("bench-logprob-long", f"PYTHON -m benchmarks.bench_logprob --filter 32768 {BENCH}"),
    Step("bench-loss-long", f"PYTHON -m benchmarks.bench_policy_loss --filter 32768 {BENCH}"),
    # A rank's shard of 152,064 columns on 2, 4 and 8 ranks.
    Step("bench-logprob-shards", "PYTHON -m benchmarks.bench_logprob --shapes 8192x76032,8192x38016,8192x19008 "
         f"--filter 'bf16 [0-9x]+$' {BENCH}"),
    Step("bench-loss-shards", "PYTHON -m benchmarks.bench_policy_loss --shapes 8192x76032,8192x38016,8192x19008 "
         f"--filter 'bf16 [0-9x]+$' {BENCH}"),
    Step("bench-linear-qwen", f"PYTHON -m benchmarks.bench_linear --filter 'bf16 8192x152064x5120$' {BENCH}",
         limit=460),
    Step("bench-linear-models", "PYTHON -m benchmarks.bench_linear --filter "
         f"'bf16 8192x(151936x1536|128256x4096|49152x576)$' {BENCH}", limit=460),
    Step("bench-linear-rows", f"PYTHON -m benchmarks.bench_linear --filter 'bf16 (1|1024|32768)x' {BENCH}", limit=460),
    Step("bench-linear-kinds", f"PYTHON -m benchmarks.bench_linear --filter 'masked|ragged|frozen|fp16|fp32' {BENCH}",
         limit=460),
    Step("bench-linear-memory", "PYTHON -m benchmarks.step_memory cuda 0 32768x152064x5120"),
    # Other tiles than the ones that were just measured.
    *(Step(f"tiles-{name}", f"PYTHON -m benchmarks.bench_tiles --filter ' ({fields}) ' --out OUT/NAME.json", needs, 460)
      for name, fields, needs in (
          ("statistics", "statistics|gradient", ()), ("loss", "loss|loss_small|l2_share", ()),
          ("rest", "loss_forward|scale|advantage", ()), ("cuda", "cuda", ("tool:nvcc",)))),

    # The trainer.
    *(Step(name, f"{TESTS} {file}", ("module:pytest", *ENGINE), 460) for name, file in (
        ("test-run", "tests/end_to_end/test_gpu.py"), ("test-offload", "tests/distributed/test_offload.py"),
        ("test-memory", "tests/distributed/test_plan_memory.py"))),
    Step("step", f"PYTHON -m benchmarks.bench_step {BF16} --out OUT/NAME.json", ENGINE),
    Step("canary", f"PYTHON -m benchmarks.bench_canary {BF16} --out OUT/NAME.json", ENGINE),
    Step("memory", f"PYTHON -m benchmarks.bench_memory {BF16} --out OUT/NAME.json", ENGINE, 460),
    Step("rollout", "PYTHON -m benchmarks.bench_rollout --dtype bfloat16 --out OUT/NAME.json", ENGINE, 460),
    Step("sync", "PYTHON -m benchmarks.bench_sync --out OUT/NAME.json", ("gpus:2", "module:transformers", *TRAINER)),
    Step("balance", "PYTHON -m benchmarks.bench_balance --out OUT/NAME.json", TRAINER),
    *(Step(f"smollm2-{part}", f"PYTHON -m benchmarks.bench_{part} --config configs/smollm2.yaml {BF16} "
           "batch.micro_batch=64 --out OUT/NAME.json", (*ENGINE, *SMOLLM2), 460)
      for part in ("step", "canary")),
    Step("smollm2-trl", f"PYTHON -m benchmarks.bench_trl --config configs/smollm2.yaml {BF16} batch.micro_batch=64 "
         "--steps 30 --out OUT/NAME.json", ("module:vllm", "module:trl", *TRAINER, *SMOLLM2), 460),
    # Stops by itself and goes on in the next run (gpu_check.MORE), until the model is there.
    Step("smollm2-train", f"timeout --preserve-status -s TERM 420 PYTHON -m srpo train configs/smollm2.yaml run={RUN} "
         f"{BF16} batch.micro_batch=64 'stages=[{{name: gsm8k, domains: [math], until: steps, steps: 100}}]' "
         f"&& cp {RUN}/metrics.jsonl OUT/NAME.jsonl && {{ [ -d {RUN}/hf ] || exit 75; }}", (*ENGINE, *SMOLLM2), 475),

    # Slow, so last.
    *(Step(f"{tool}-{kernel}", f"compute-sanitizer --tool {tool} --error-exitcode 9 PYTHON -m benchmarks.gpu_kernels "
           f"{kernel}", ("tool:compute-sanitizer", *(("step:build",) if kernel.endswith("cpp") else ())), 300,
           # Each tensor an allocation of its own, or what lies beyond it is torch's too.
           {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
      for kernel in ("advantage", "statistics", "policy_loss", "scale", "linear", "statistics-cpp")
      for tool in ("memcheck", "racecheck", "initcheck")),
]
