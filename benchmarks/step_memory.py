"""Peak memory of one loss with its gradients, in a process of its own; bench_linear reads the JSON that it prints."""

from __future__ import annotations

import json
import sys

import torch
from srpo_kernels import linear_policy_loss

from benchmarks.timing import peak_memory


def measure(rows: int, vocab: int, hidden: int, device: torch.device) -> dict[str, int | None]:
    """Bytes beyond the inputs: "allocated" by torch, and on CPU how much the process grew ("resident")."""
    states = torch.randn(rows, hidden, device=device).to(torch.bfloat16).requires_grad_()
    weight = torch.empty(vocab, hidden, dtype=torch.bfloat16, device=device).normal_(0, hidden**-0.5).requires_grad_()
    tokens = torch.randint(vocab, (rows,), device=device)
    advantages = torch.randn(rows, device=device)

    def step(part: slice) -> None:
        loss, _ = linear_policy_loss(states[part], weight, tokens[part], advantages[part])
        torch.autograd.grad(loss, (states, weight))

    step(slice(0, 1))  # what libraries set up at first use
    before = resident("VmRSS")
    allocated = peak_memory(lambda: step(slice(None)), device)
    return {"allocated": allocated, "resident": resident("VmHWM") - before if device.type == "cpu" else None}


def resident(field: str) -> int:
    """Bytes of this process that are ("VmRSS") or have at most been ("VmHWM") in memory. Linux."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))


if __name__ == "__main__":
    *sizes, device_type, threads = sys.argv[1:]
    if int(threads):
        torch.set_num_threads(int(threads))
    rows, vocab, hidden = map(int, sizes)
    print(json.dumps(measure(rows, vocab, hidden, torch.device(device_type))))
