"""What only a GPU can show: the chunked products in bfloat16, no synchronization, capture in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from srpo_kernels import PolicyLossConfig, linear, linear_policy_loss, policy_loss, reference, status
from torch import Tensor

pytestmark = pytest.mark.gpu

ROWS, WIDTH, HIDDEN = 300, 4099, 64
CONFIG = PolicyLossConfig(kl="k3", kl_coef=0.1, entropy_coef=0.01, dual_clip=3.0, tis_cap=2.0)


def make(dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """hidden, weight, tokens, advantages, old, ref and rollout log-probs: the same numbers on either device."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator).to(dtype)
    weight = (torch.randn(WIDTH, HIDDEN, generator=generator) / HIDDEN**0.5).to(dtype)
    tokens = torch.randint(0, WIDTH, (ROWS,), generator=generator)
    near = reference.linear_token_logprobs(hidden, weight, tokens).float()
    others = [near + 0.3 * torch.randn(ROWS, generator=generator) for _ in range(3)]
    advantages = torch.randn(ROWS, generator=generator)
    return tuple(tensor.to(device) for tensor in (hidden, weight, tokens, advantages, *others))


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_policy_loss(dtype: torch.dtype, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status("cuda")["policy_loss"].backend == "triton"
    monkeypatch.setitem(linear.CHUNK, "cuda", 128 * WIDTH)
    results = []
    for device in ("cpu", "cuda"):
        hidden, weight, tokens, advantages, old, ref, rollout = make(dtype, device)
        if device == "cpu":
            hidden, weight = hidden.double(), weight.double()
        hidden.requires_grad_(), weight.requires_grad_()
        buffer = torch.zeros(WIDTH, HIDDEN, device=device) if direct and device == "cuda" else None
        loss, metrics = linear_policy_loss(hidden, weight, tokens, advantages, old_logprobs=old, ref_logprobs=ref,
                                           rollout_logprobs=rollout, config=CONFIG, weight_grad=buffer)
        loss.backward()
        grad = weight.grad if buffer is None else buffer
        results.append([value.double().cpu() for value in (loss.detach(), metrics.entropy, hidden.grad, grad)])
    for got, want in zip(results[1], results[0], strict=True):
        bound = 1e-5 if dtype == torch.float32 else 2e-2
        assert (got - want).norm() <= bound * want.norm()


def test_nothing_waits_for_the_device() -> None:
    hidden, weight, tokens, advantages, old, ref, rollout = make(torch.bfloat16, "cuda")
    hidden.requires_grad_(), weight.requires_grad_()
    mask = torch.ones(ROWS, dtype=torch.bool, device="cuda")
    options = {"old_logprobs": old, "ref_logprobs": ref, "rollout_logprobs": rollout, "mask": mask, "config": CONFIG}
    torch.cuda.set_sync_debug_mode("error")  # not before: copies from the host, which made the inputs, do wait
    try:
        loss, _ = linear_policy_loss(hidden, weight, tokens, advantages, **options)
        (loss * torch.full((), 0.5, device="cuda")).backward()
        logits = (hidden @ weight.T).detach().requires_grad_()
        loss, _ = policy_loss(logits, tokens, advantages, **options)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_capture_in_a_cuda_graph() -> None:
    hidden, weight, tokens, advantages, old, *_ = make(torch.bfloat16, "cuda")
    hidden.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        hidden.grad = None
        loss, metrics = linear_policy_loss(hidden, weight, tokens, advantages, old_logprobs=old)
        loss.backward()
        return loss.detach(), metrics.logprobs

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    want = [value.clone() for value in step()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
