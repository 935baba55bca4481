"""Log-probs and losses from hidden states: matrix products and nothing else, and never the logits of all tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench, Session, main
from benchmarks.inputs import Case

GIB = 2**30
STEP = (32768, 152064)  # tokens of a training step, Qwen2.5-32B's vocabulary
STEP_HIDDEN = 5120
TARGET = 3.0  # GiB


def cases(device: str, quick: bool) -> list[Case]:
    if quick:
        rows, sizes, others = 8, [(1000, 32)], []
    elif device == "cpu":
        rows, sizes, others = 128, [(151936, 256), (152064, 256), (128256, 256), (49152, 576)], [1]
    else:
        # Qwen2.5-32B, Qwen2.5-1.5B, Llama-3.1-8B, SmolLM2-135M
        rows, sizes, others = 8192, [(152064, 5120), (151936, 1536), (128256, 4096), (49152, 576)], [1, 1024, 32768]
    vocab, hidden = sizes[0]
    loss = [Case("linear_policy_loss", "bf16", rows, *size, backward=True) for size in sizes]
    loss += [Case("linear_policy_loss", "bf16", other, vocab, hidden, backward=True) for other in others]
    loss += [Case("linear_policy_loss", dtype, rows, vocab, hidden, backward=True) for dtype in ("fp16", "fp32")]
    loss += [Case("linear_policy_loss", "bf16", rows, vocab, hidden, backward=True, **varied)
             for varied in ({"masked": 0.5}, {"ragged": True}, {"frozen": True})]
    return [Case("linear_token_logprobs", "bf16", rows, vocab, hidden),
            Case("linear_token_logprobs", "bf16", rows, vocab, hidden, backward=True), *loss,
            Case("linear_cross_entropy", "bf16", rows, vocab, hidden, backward=True)]


def work(case: Case) -> dict[str, float]:
    """Products of the rows that are not masked: logits, then the gradients of hidden and of weight."""
    products = 1 if not case.backward else 2 if case.frozen else 3
    return {"matrix": 2.0 * products * case.active * case.vocab * case.hidden}


def step_memory(session: Session) -> dict[str, Any]:
    """Peak memory of a training step's loss. CUDA: the step itself. CPU: real steps at two small hidden sizes, and from
    them, as every buffer is linear in H, the step at the full one."""
    rows, vocab = (64, 1000) if session.options.quick else STEP
    sizes = [STEP_HIDDEN] if session.device.type == "cuda" and not session.options.quick else [32, 64]
    measured = [_child(rows, vocab, hidden, session) for hidden in sizes]
    peaks = [each["allocated"] for each in measured]
    slope = (peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else 0.0
    peak = peaks[-1] + slope * (STEP_HIDDEN - sizes[-1])
    gradients = STEP_HIDDEN * (2 * rows + 4 * vocab)
    own, logits = peak - gradients, 4 * rows * vocab
    print(f"\npeak memory of linear_policy_loss with both gradients, bf16, {rows} x {vocab}, beyond its inputs")
    for hidden, each in zip(sizes, measured, strict=True):
        resident = f", {each['resident'] / GIB:.2f} GiB resident" if each["resident"] is not None else ""
        print(f"  H = {hidden}: {each['allocated'] / GIB:.2f} GiB allocated by torch{resident} (measured)")
    source = "measured" if len(sizes) == 1 else "linear in H from the above"
    print(f"  H = {STEP_HIDDEN}: {peak / GIB:.2f} GiB ({source}), of which the gradients of hidden in bf16 and of "
          f"weight in float32 are {gradients / GIB:.2f} GiB and the rest {own / GIB:.2f} GiB (target {TARGET}): "
          + ("met" if own < TARGET * GIB else "NOT MET"))
    print(f"  logits and their gradient in bf16, which this replaces: {logits / GIB:.2f} GiB")
    return {"step_memory": {"rows": rows, "vocab": vocab, "measured": dict(zip(map(str, sizes), measured, strict=True)),
                            "hidden": STEP_HIDDEN, "peak": peak, "gradients": gradients, "own": own, "logits": logits,
                            "met": own < TARGET * GIB}}


def _child(rows: int, vocab: int, hidden: int, session: Session) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.step_memory", str(rows), str(vocab), str(hidden), session.device.type,
               str(session.options.threads or 0)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent)
    return json.loads(done.stdout.splitlines()[-1])


BENCH = Bench("linear", cases, work,
              "the matrix products at the best rate of the three: 1 forward, 3 with both gradients, 2 with a frozen "
              "weight", step_memory)

if __name__ == "__main__":
    main([BENCH], __doc__)
