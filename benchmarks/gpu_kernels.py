"""Launches kernels once each, in every dtype and with awkward shapes, for compute-sanitizer: nothing is measured.

    compute-sanitizer --tool memcheck python -m benchmarks.gpu_kernels KERNEL

Results are checked to be what plain torch makes of the same numbers, so that a run which went wrong is seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from srpo_kernels import PolicyLossConfig, group_advantage, linear_policy_loss, policy_loss, token_logprobs
from srpo_kernels.dispatch import Backend
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows and columns: one of each, less than a vector, ragged tiles, more rows than there are multiprocessors.
SHAPES = ((1, 1), (3, 7), (5, 4099), (2, 33000), (300, 130))
CONFIG = PolicyLossConfig(kl="k3", kl_coef=0.1, entropy_coef=0.01, dual_clip=3.0, tis_cap=2.0)


def advantage(backend: Backend, device: str) -> None:
    for sizes in ([1], [2, 1, 5], [300] * 3):
        offsets = torch.tensor([0, *sizes], device=device).cumsum(0)
        rewards = torch.randint(2, (sum(sizes),), device=device).float()
        valid = torch.rand(sum(sizes), device=device) > 0.2
        agree(lambda name, *inputs: group_advantage(*inputs[:2], valid=inputs[2], backend=name), backend,
              rewards, offsets, valid)


def statistics(backend: Backend, device: str) -> None:
    """Log-probs with entropy, and their gradient, in place and apart."""
    for logits, tokens in inputs(device):
        def call(name: Backend, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
            leaf = x.detach().clone().requires_grad_()
            logprobs, entropy = token_logprobs(leaf, y, temperature=0.8, return_entropy=True, backend=name)
            (logprobs.sum() + entropy.sum()).backward()
            return logprobs.detach(), entropy.detach(), leaf.grad
        agree(call, backend, logits, tokens)


def loss(backend: Backend, device: str, upstream: float = 1.0) -> None:
    for logits, tokens in inputs(device):
        rows = len(tokens)
        others = [torch.randn(rows, device=device) * 0.3 - 5 for _ in range(3)]
        advantages, mask = torch.randn(rows, device=device), torch.rand(rows, device=device) > 0.3

        def call(name: Backend, x: Tensor, y: Tensor, a: Tensor, m: Tensor, *of: Tensor) -> tuple[Tensor | None, ...]:
            leaf = x.detach().clone().requires_grad_()
            value, _ = policy_loss(leaf, y, a, mask=m, old_logprobs=of[0], ref_logprobs=of[1], rollout_logprobs=of[2],
                                   config=CONFIG, backend=name, normalizer=len(y))
            (value * upstream).backward()
            return value.detach(), leaf.grad
        agree(call, backend, logits, tokens, advantages, mask, *others)


def scale(backend: Backend, device: str) -> None:
    """A gradient other than 1 into the loss: the one that is kept has to be scaled."""
    loss(backend, device, upstream=0.5)


def linear(backend: Backend, device: str) -> None:
    """The chunked products around the loss."""
    for rows, width, size in ((1, 9, 8), (70, 4099, 40)):
        hidden = torch.randn(rows, size, device=device)
        weight = torch.randn(width, size, device=device) / size**0.5
        tokens, advantages = torch.randint(width, (rows,), device=device), torch.randn(rows, device=device)

        def call(name: Backend, h: Tensor, w: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor | None, ...]:
            h, w = h.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
            value, _ = linear_policy_loss(h, w, y, a, config=PolicyLossConfig(), backend=name)
            value.backward()
            return value.detach(), h.grad, w.grad
        agree(call, backend, hidden, weight, tokens, advantages)


def inputs(device: str) -> list[tuple[Tensor, Tensor]]:
    return [((torch.randn(rows, width, device=device) * 4).to(dtype), torch.randint(width, (rows,), device=device))
            for rows, width in SHAPES for dtype in DTYPES]


def agree(call: Callable[..., Any], backend: Backend, *arguments: Tensor) -> None:
    """The backend with plain torch, within what the narrowest type rounds."""
    narrow = min((x.dtype for x in arguments if x.is_floating_point()), key=lambda dtype: dtype.itemsize)
    bound = 1e-4 if narrow == torch.float32 else 2e-2
    got, want = call(backend, *arguments), call("torch", *arguments)
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    for ours, theirs in zip(got, want, strict=True):
        difference = (ours.double() - theirs.double()).norm()
        assert difference <= bound * theirs.double().norm() + 1e-6, f"{difference} off, {[x.shape for x in arguments]}"


KERNELS: dict[str, tuple[Callable[[Backend, str], None], Backend]] = {
    "advantage": (advantage, "triton"), "statistics": (statistics, "triton"), "policy_loss": (loss, "triton"),
    "scale": (scale, "triton"), "linear": (linear, "triton"), "statistics-cpp": (statistics, "cpp")}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", choices=KERNELS)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="(%(default)s)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    function, backend = KERNELS[options.kernel]
    function(backend, options.device)
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"{options.kernel} ({backend}) agrees with plain torch")


if __name__ == "__main__":
    main()
