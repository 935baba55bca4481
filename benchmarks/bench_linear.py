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
    # On CPU a product in float16 takes minutes.
    dtypes = ("fp32",) if device == "cpu" else ("fp16", "fp32")
    loss += [Case("linear_policy_loss", dtype, rows, vocab, hidden, backward=True) for dtype in dtypes]
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
    """Peak memory of a training step's loss. CUDA: of the step itself. CPU: of real steps with all of the tokens and a
    small hidden size, and with the full hidden size and few tokens, twice, from which it grows by the rows of the
    gradient of hidden. (In the hidden size it is not linear: another moment becomes the highest.)"""
    rows, vocab, hidden = (64, 1000, 32) if session.options.quick else (*STEP, STEP_HIDDEN)
    whole = session.device.type == "cuda"
    few = [rows // 32, rows // 16]
    shapes = [(rows, hidden)] if whole else [(rows, hidden // 80 or 1), (few[0], hidden), (few[1], hidden)]
    measured = _steps([f"{n}x{vocab}x{h}" for n, h in shapes], session)
    peak = float(measured[-1]["allocated"])
    if not whole:
        peak += (rows - few[1]) * (peak - measured[-2]["allocated"]) / (few[1] - few[0])
    gradient, logits = 2 * rows * hidden, 4 * rows * vocab
    source = "measured" if whole else "linear in the tokens"
    print(f"\npeak memory of linear_policy_loss, bf16, beyond its inputs and the float32 buffer of weight's gradient; "
          f"tokens x {vocab} x hidden")
    for each in measured:
        grown = "" if each["resident"] is None else f", the process grew by {_gib(each['resident'])}"
        print(f"  {each['rows']} x {vocab} x {each['hidden']}: {_gib(each['allocated'])} allocated{grown} (measured)")
    print(f"  {rows} x {vocab} x {hidden}: {_gib(peak)} ({source}), of these the gradient of hidden {_gib(gradient)}; "
          f"target below {TARGET} GiB: {'met' if peak < TARGET * GIB else 'NOT MET'}\n"
          f"  logits and their gradient in bf16, which this replaces: {_gib(logits)}")
    return {"step_memory": {"measured": measured, "rows": rows, "vocab": vocab, "hidden": hidden, "peak": peak,
                            "gradient": gradient, "logits": logits, "met": peak < TARGET * GIB}}


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _steps(shapes: list[str], session: Session) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.step_memory", session.device.type, str(session.options.threads or 0)]
    done = subprocess.run([*command, *shapes], stdout=subprocess.PIPE, text=True, check=True,
                          cwd=Path(__file__).parent.parent)
    return json.loads(done.stdout.splitlines()[-1])


BENCH = Bench("linear", cases, work,
              "the matrix products at the best rate of the three: 1 forward, 3 with both gradients, 2 with a frozen "
              "weight", step_memory)

if __name__ == "__main__":
    main([BENCH], __doc__)
