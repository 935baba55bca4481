"""torch.compile without a graph break: every public function, values and gradients as in eager mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
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
@pytest.mark.parametrize("backend", ["one pass", "torch"])
def test_without_a_graph_break(one_pass: str, backend: str, name: str) -> None:
    """Traced, differentiated ahead of time and functionalized, but not compiled to machine code."""
    chosen = one_pass if backend == "one pass" else backend
    if name in CASES:
        check(lambda x: CASES[name](chosen, x), [torch.randn(ROWS, WIDTH)], backend="aot_eager")
    else:
        check(lambda h, w: LINEAR[name](chosen, h, w), [torch.randn(ROWS, HIDDEN), torch.randn(WIDTH, HIDDEN)],
              backend="aot_eager")


def test_group_advantage_without_a_graph_break() -> None:
    rewards = torch.tensor([0.0, 1.0])
    compiled = torch.compile(lambda r: group_advantage(r, OFFSETS) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(rewards), group_advantage(rewards, OFFSETS) * 2)


def test_compiled_to_machine_code() -> None:
    check(lambda x: CASES["policy_loss"]("cpp", x), [torch.randn(ROWS, WIDTH)])


def test_lengths_do_not_recompile() -> None:
    """A batch has a new number of tokens every time; after two of them the shape is dynamic."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def loss(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        return policy_loss(x, y, a, backend="cpp")[0]

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for rows in (5, 6, 7, 8, 9):
        compiled(torch.randn(rows, WIDTH, requires_grad=True), TOKENS[:rows], VALUES[0, :rows]).backward()
    assert counter.frame_count <= 2
