"""Peak memory of a training step's loss with its gradients, in a process of its own, as JSON:
python -m benchmarks.step_memory DEVICE THREADS NxVxH ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from srpo_kernels import linear_policy_loss

from benchmarks.timing import peak_memory


def measure(rows: int, vocab: int, hidden: int, device: torch.device) -> dict[str, int | None]:
    """Bytes beyond the inputs: "allocated" by torch, and on CPU how much the process grew ("resident").

    As the trainer does it, the weight's gradient is added to a float32 buffer that the optimizer has anyway.
    """
    states = torch.randn(rows, hidden, device=device).to(torch.bfloat16).requires_grad_()
    weight = torch.empty(vocab, hidden, dtype=torch.bfloat16, device=device).normal_(0, hidden**-0.5).requires_grad_()
    tokens = torch.randint(vocab, (rows,), device=device)
    advantages = torch.randn(rows, device=device)

    total = torch.zeros(vocab, hidden, device=device)

    def step(part: slice) -> None:
        loss, _ = linear_policy_loss(states[part], weight, tokens[part], advantages[part], weight_grad=total)
        torch.autograd.grad(loss, states)

    step(slice(0, 1))  # what libraries set up at first use
    if device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
    before = resident("VmRSS")
    allocated = peak_memory(lambda: step(slice(None)), device)
    return {"rows": rows, "vocab": vocab, "hidden": hidden, "allocated": allocated,
            "resident": resident("VmHWM") - before if device.type == "cpu" else None}


def resident(field: str) -> int:
    """Bytes of this process that are ("VmRSS") or have at most been ("VmHWM") in memory. Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    device_type, threads, *shapes = sys.argv[1:]
    if int(threads):
        torch.set_num_threads(int(threads))
    device = torch.device(device_type)
    sizes = [tuple(map(int, shape.split("x"))) for shape in shapes]
    print(json.dumps([measure(rows, vocab, hidden, device) for rows, vocab, hidden in sizes]))
