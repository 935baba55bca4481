"""torch.compile without a graph break: every public function, values and gradients as in eager mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from backends import COMPILED, DEVICE, on_cpu, set_chunk
from srpo_kernels import (
    PolicyLossConfig,
    group_advantage,
    grpo_loss,
    linear_policy_loss,
    linear_token_logprobs,
    policy_loss,
    token_logprobs,
)
from torch import Tensor

ROWS, WIDTH, HIDDEN = 12, 50, 8
torch.manual_seed(0)
with torch.device(DEVICE):
    TOKENS, VALUES = torch.randint(0, WIDTH, (ROWS,)), torch.randn(3, ROWS)
    MASK, CU_SEQLENS, OFFSETS = torch.rand(ROWS) > 0.2, torch.tensor([0, 5, ROWS]), torch.tensor([0, 2])
EVERYTHING = PolicyLossConfig(kl="k3", kl_coef=0.1, entropy_coef=0.1, tis_cap=1.5, dual_clip=3.0)
SEQUENCE = PolicyLossConfig(ratio="sequence", aggregate="sequence")


def with_metrics(result: tuple[Tensor, Any]) -> Tensor:
    loss, metrics = result
    return loss * 2 + 0 * metrics.kl + 0 * metrics.clipped


CASES: dict[str, Callable[..., Tensor]] = {
    "token_logprobs": lambda b, x: (
        torch.stack(token_logprobs(x, TOKENS, return_entropy=True, mask=MASK, backend=b)) * VALUES[:2]).sum(),
    "token_logprobs, in place": lambda b, x: token_logprobs(x * 1.0, TOKENS, inplace_backward=True, backend=b).sum(),
    "policy_loss": lambda b, x: with_metrics(policy_loss(
        x, TOKENS, VALUES[0], mask=MASK, old_logprobs=VALUES[1], ref_logprobs=VALUES[2], rollout_logprobs=VALUES[2],
        config=EVERYTHING, backend=b)),
    "policy_loss, sequences": lambda b, x: with_metrics(policy_loss(
        x, TOKENS, VALUES[0, :2], cu_seqlens=CU_SEQLENS, old_logprobs=VALUES[1], config=SEQUENCE, backend=b)),
    "grpo_loss": lambda b, x: with_metrics(grpo_loss(
        x, TOKENS, torch.tensor([0.0, 1.0]), OFFSETS, CU_SEQLENS, backend=b)),
}
LINEAR: dict[str, Callable[..., Tensor]] = {
    "linear_token_logprobs": lambda b, h, w: linear_token_logprobs(h, w, TOKENS, backend=b).sum(),
    "linear_policy_loss": lambda b, h, w: with_metrics(linear_policy_loss(
        h, w, TOKENS, VALUES[0], mask=MASK, backend=b)),
    "linear_policy_loss, sequences": lambda b, h, w: with_metrics(linear_policy_loss(
        h, w, TOKENS, VALUES[0], cu_seqlens=CU_SEQLENS, config=SEQUENCE, backend=b)),
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def check(function: Callable[..., Tensor], inputs: list[Tensor], **options: Any) -> None:
    results = []
    for run in (function, torch.compile(function, fullgraph=True, **options)):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        loss = run(*leaves)
        loss.backward()
        results.append([loss.detach(), *[leaf.grad for leaf in leaves]])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("name", [*CASES, *LINEAR])
@pytest.mark.parametrize("backend", [*COMPILED, "torch"])
def test_without_a_graph_break(backend: str, name: str) -> None:
    """Traced, differentiated ahead of time and functionalized, but not compiled to machine code."""
    if name in CASES:
        check(lambda x: CASES[name](backend, x), [torch.randn(ROWS, WIDTH)], backend="aot_eager")
    else:
        check(lambda h, w: LINEAR[name](backend, h, w), [torch.randn(ROWS, HIDDEN), torch.randn(WIDTH, HIDDEN)],
              backend="aot_eager")


def test_group_advantage_without_a_graph_break() -> None:
    rewards = torch.tensor([0.0, 1.0])
    compiled = torch.compile(lambda r: group_advantage(r, OFFSETS) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(rewards), group_advantage(rewards, OFFSETS) * 2)


def test_compiled_to_machine_code() -> None:
    check(lambda x: CASES["policy_loss"](COMPILED[0], x), [torch.randn(ROWS, WIDTH)])


@pytest.mark.parametrize("name", ["policy_loss", "linear_token_logprobs", "linear_policy_loss"])
def test_lengths_do_not_recompile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has a new number of tokens every time; after two of them it is dynamic, and the chunks' number too."""
    set_chunk(monkeypatch, 2 * WIDTH)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    weight = torch.randn(WIDTH, HIDDEN, requires_grad=True)

    def loss(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        if name == "policy_loss":
            return policy_loss(x @ weight.T, y, a, backend=COMPILED[0])[0]
        if name == "linear_token_logprobs":
            return linear_token_logprobs(x, weight, y, backend=COMPILED[0]).sum()
        return linear_policy_loss(x, weight, y, a, backend=COMPILED[0])[0]

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for rows in range(5, ROWS):
        x = torch.randn(rows, HIDDEN, requires_grad=True)
        compiled(x, TOKENS[:rows], VALUES[0, :rows]).backward()
        again = x.detach().requires_grad_()
        loss(again, TOKENS[:rows], VALUES[0, :rows]).backward()
        torch.testing.assert_close(x.grad, again.grad)
    assert counter.frame_count <= 2


@on_cpu
def test_checks_of_values_while_compiling() -> None:
    """Where looking at a value would break the graph, the device itself looks."""
    compiled = torch.compile(lambda x, y: token_logprobs(x, y, backend="cpp"), fullgraph=True, backend="aot_eager")
    for wrong in (-100, WIDTH):
        with pytest.raises(RuntimeError, match="tokens must be within"):
            compiled(torch.randn(ROWS, WIDTH), torch.full((ROWS,), wrong))
    offsets = torch.compile(lambda x, c: policy_loss(x, TOKENS, VALUES[0], cu_seqlens=c, backend="cpp")[0],
                            fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="cu_seqlens must run from 0"):
        offsets(torch.randn(ROWS, WIDTH), torch.tensor([0, ROWS - 1]))
