"""policy_loss: loss and logit gradient together read the logits once and write the gradient once."""

from __future__ import annotations

from benchmarks.bench_logprob import cases_of
from benchmarks.harness import Bench, main
from benchmarks.inputs import DTYPES, Case


def work(case: Case) -> dict[str, float]:
    """Masked rows are not read; their gradient is written."""
    row = case.vocab * DTYPES[case.dtype].itemsize
    read = float(case.active * row)
    if not case.backward:
        return {"read": read}
    return {"copy": 2 * read, "write": float((case.rows - case.active) * row)}


BENCH = Bench("policy_loss", lambda device, quick: cases_of("policy_loss", device, quick), work,
              "forward one read; forward+backward one read and one write")

if __name__ == "__main__":
    main([BENCH], __doc__)
