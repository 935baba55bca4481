"""token_logprobs: forward reads the logits once; backward in place reads and writes them once more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.harness import Bench, Session, main
from benchmarks.inputs import DTYPES, Case
from benchmarks.peers import EAGER, OURS

VOCABULARIES = (151936, 152064, 128256, 49152)  # Qwen2.5-Math and Qwen3, Qwen2.5, Llama 3, SmolLM2
TARGETS = {"warm": 2.0, "cold": 3.5}
TARGET_ERROR = 1e-5


def cases_of(op: str, device: str, quick: bool) -> list[Case]:
    """Dtypes, then vocabularies, rows, masked and ragged rows, each around one case in the middle; both directions."""
    vocabularies: tuple[int, ...]
    others: tuple[int, ...]
    if quick:
        rows, vocabularies, others = 8, (1000,), (1,)
    elif device == "cpu":
        rows, vocabularies, others = 128, VOCABULARIES, (1, 16)
    else:
        rows, vocabularies, others = 8192, VOCABULARIES, (1, 16, 128, 1024, 32768)
    kinds = [Case(op, dtype, rows, vocabularies[0]) for dtype in ("bf16", "fp16", "fp32")]
    kinds += [Case(op, "bf16", rows, vocab) for vocab in vocabularies[1:]]
    kinds += [Case(op, "bf16", other, vocabularies[0]) for other in others]
    kinds += [Case(op, "bf16", rows, vocabularies[0], masked=0.5), Case(op, "bf16", rows, vocabularies[0], ragged=True)]
    return [replace(kind, backward=backward) for kind in kinds for backward in (False, True)]


def work(case: Case) -> dict[str, float]:
    """Masked rows are not read; their gradient is written."""
    row = case.vocab * DTYPES[case.dtype].itemsize
    read = float(case.active * row)
    if not case.backward:
        return {"read": read}
    return {"read": read, "copy": 2 * read, "write": float((case.rows - case.active) * row)}


def check(session: Session) -> dict[str, Any]:
    """What the CPU kernel is held to: 128 x 151936 on two threads, against log_softmax + gather."""
    if session.device.type != "cpu" or session.skips(EAGER):
        return {}
    rows, vocab = (8, 1000) if session.options.quick else (128, 151936)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    results: dict[str, Any] = {}
    print(f"\nlog_softmax + gather over srpo_kernels, {rows} x {vocab}, 2 threads")
    for dtype in ("bf16", "fp32"):
        case = Case("token_logprobs", dtype, rows, vocab)
        ours = next(row for row in session.measure(case, work(case), (OURS, EAGER)) if row["implementation"] == OURS)
        speedup = {mode: 1 / ours[mode]["to_eager"] for mode in TARGETS}
        met = all(speedup[mode] >= target for mode, target in TARGETS.items())
        met = met and (dtype != "bf16" or ours["value_error"] <= TARGET_ERROR)
        results[f"{dtype} {rows}x{vocab}"] = {**speedup, "error": ours["value_error"], "met": met}
        print(f"  {dtype}: {speedup['warm']:.2f}x warm (target {TARGETS['warm']}), {speedup['cold']:.2f}x cold (target "
              f"{TARGETS['cold']}), error {ours['value_error']:.1e} (bf16 target {TARGET_ERROR:.0e}): "
              + ("met" if met else "NOT MET"))
    torch.set_num_threads(threads)
    return {"logprob": results}


BENCH = Bench("token_logprobs", lambda device, quick: cases_of("token_logprobs", device, quick), work,
              "forward one read; forward+backward one read, then one read and one write in place", check)

if __name__ == "__main__":
    main([BENCH], __doc__)
