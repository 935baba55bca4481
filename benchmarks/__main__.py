"""All benchmarks in one run: python -m benchmarks --out benchmarks/results/DEVICE.json"""

from benchmarks import bench_advantage, bench_linear, bench_logprob, bench_policy_loss
from benchmarks.harness import main

if __name__ == "__main__":
    main([bench_advantage.BENCH, bench_logprob.BENCH, bench_policy_loss.BENCH, bench_linear.BENCH], __doc__)
