"""A vocabulary split over 2 and 4 gloo ranks: the single-rank results and gradients, one collective, none backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from srpo_kernels import (
    PolicyLossConfig,
    linear,
    linear_policy_loss,
    linear_token_logprobs,
    policy_loss,
    token_logprobs,
)

ROWS, WIDTH, HIDDEN = 11, 64, 6
# On 4 ranks of 16 columns: nothing padded; a shard in part; the last shard, and then the last two, padding alone.
VOCAB_SIZES = [64, 61, 48, 20]


class Collectives:
    """Counts the collectives started while it is open."""

    def __enter__(self) -> Collectives:
        self.count, self.originals = 0, {}
        for name in ("all_gather", "all_gather_into_tensor", "all_reduce", "reduce_scatter", "broadcast", "all_to_all"):
            self.originals[name] = getattr(dist, name)
            setattr(dist, name, self._counted(getattr(dist, name)))
        return self

    def _counted(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return function(*args, **kwargs)
        return call

    def __exit__(self, *_: object) -> None:
        for name, function in self.originals.items():
            setattr(dist, name, function)


def check_logprobs(group: dist.ProcessGroup, vocab_size: int, dtype: torch.dtype, backend: Any) -> None:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    own = slice(rank * WIDTH // ranks, (rank + 1) * WIDTH // ranks)
    full = (torch.randn(ROWS, WIDTH) * 3).to(dtype)
    full[0, : WIDTH // ranks] = -torch.inf  # the first rank has nothing in this row
    full[1] += 300.0
    full[2, vocab_size:] = torch.nan
    tokens = torch.randint(0, vocab_size, (ROWS,))
    tokens[0] = vocab_size - 1
    full[0, tokens[0]] = 1.0
    a, b = torch.randn(2, ROWS)
    shard = full[:, own].clone().requires_grad_()
    full.requires_grad_()
    options: dict[str, Any] = {"temperature": 0.9, "return_entropy": True, "vocab_size": vocab_size, "backend": backend}
    want, want_entropy = token_logprobs(full, tokens, **options)
    (want * a + want_entropy * b).sum().backward()
    with Collectives() as forward:
        got, entropy = token_logprobs(shard, tokens, group=group, **options)
    with Collectives() as backward:
        (got * a + entropy * b).sum().backward()
    assert (forward.count, backward.count) == (1, 0)
    # Other groupings of the same sum; a narrower gradient may round to the neighbour.
    torch.testing.assert_close((got, entropy), (want, want_entropy), rtol=2e-6, atol=2e-6)
    bound = 2**-8 if dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(shard.grad, full.grad[:, own], rtol=bound, atol=1e-6)
    results = [torch.empty_like(got) for _ in range(ranks)]
    dist.all_gather(results, got.detach(), group=group)
    assert all(torch.equal(results[0], other) for other in results), "ranks disagree"


TOKEN = PolicyLossConfig(entropy_coef=0.1, dual_clip=2.0, kl="k3", kl_coef=0.1)
SEQUENCE = PolicyLossConfig(ratio="sequence", aggregate="sequence", entropy_coef=0.1, dual_clip=2.0)


def check_policy_loss(group: dist.ProcessGroup, vocab_size: int, config: PolicyLossConfig) -> None:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    own = slice(rank * WIDTH // ranks, (rank + 1) * WIDTH // ranks)
    hidden = torch.randn(ROWS, HIDDEN, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(WIDTH, HIDDEN, dtype=torch.float64, requires_grad=True)
    tokens, advantages = torch.randint(0, vocab_size, (ROWS,)), torch.tensor([1.0, -0.5])
    old = linear_token_logprobs(hidden, weight, tokens, vocab_size=vocab_size).detach() + 0.3 * torch.randn(ROWS)
    options: dict[str, Any] = {
        "old_logprobs": old, "ref_logprobs": old + 0.1 * torch.randn(ROWS), "mask": torch.rand(ROWS) > 0.3,
        "cu_seqlens": torch.tensor([0, 4, ROWS]), "vocab_size": vocab_size, "config": config}
    want, want_metrics = linear_policy_loss(hidden, weight, tokens, advantages, **options)
    want_grads = torch.autograd.grad(want, (hidden, weight))

    shard = weight.detach()[own].clone().requires_grad_()
    linear.CHUNK["cpu"] = 4 * len(shard)  # three chunks
    with Collectives() as forward:
        got, metrics = linear_policy_loss(hidden, shard, tokens, advantages, group=group, **options)
    with Collectives() as backward:
        partial, grad_shard = torch.autograd.grad(got, (hidden, shard))
    assert (forward.count, backward.count) == (3 if config.ratio == "token" else 1, 0)
    dist.all_reduce(partial, group=group)  # what Megatron's tensor-parallel region does
    torch.testing.assert_close((got, partial, grad_shard), (want, want_grads[0], want_grads[1][own]))
    torch.testing.assert_close((metrics.entropy, metrics.kl), (want_metrics.entropy, want_metrics.kl))

    logits = (hidden @ weight.T).detach()
    dense = logits[:, own].clone().requires_grad_()
    loss, _ = policy_loss(dense, tokens, advantages, group=group, **options)
    logits.requires_grad_()
    expected, _ = policy_loss(logits, tokens, advantages, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, dense)[0], torch.autograd.grad(expected, logits)[0][:, own])


def check_compiled(group: dist.ProcessGroup, dtype: torch.dtype) -> None:
    """The trainer's way: the extension on shards, the weight's gradient added to a buffer, against one rank."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    own = slice(rank * WIDTH // ranks, (rank + 1) * WIDTH // ranks)
    hidden, weight = torch.randn(ROWS, HIDDEN).to(dtype), torch.randn(WIDTH, HIDDEN).to(dtype)
    tokens, advantages, old = torch.randint(0, 61, (ROWS,)), torch.randn(ROWS), -4 * torch.rand(ROWS)
    linear.CHUNK["cpu"] = 4 * WIDTH // ranks
    results = []
    for part, where in ((weight, None), (weight[own], group)):
        h, w = hidden.clone().requires_grad_(), part.clone().requires_grad_()
        buffer = torch.zeros(w.shape)
        loss, metrics = linear_policy_loss(
            h, w, tokens, advantages, old_logprobs=old, config=PolicyLossConfig(entropy_coef=0.1), vocab_size=61,
            group=where, weight_grad=buffer, backend="cpp")
        loss.backward()
        assert w.grad is None and h.grad is not None
        results.append([loss.detach(), metrics.logprobs, buffer if where else buffer[own], h.grad.float()])
    dist.all_reduce(results[1][-1], group=group)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(results[1], results[0], rtol=bound, atol=bound)


def check_repeats(group: dist.ProcessGroup, dtype: torch.dtype) -> None:
    """Bit by bit: a call and the same call again, on this rank and the others."""
    hidden = torch.randn(ROWS, HIDDEN).to(dtype)
    weight = torch.randn(WIDTH // dist.get_world_size(group), HIDDEN).to(dtype)
    tokens, advantages = torch.randint(0, WIDTH, (ROWS,)), torch.randn(ROWS)
    config = PolicyLossConfig(entropy_coef=0.1)
    results = []
    for _ in range(2):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss, metrics = linear_policy_loss(h, w, tokens, advantages, group=group, config=config)
        loss.backward()
        results.append((loss.detach(), metrics.logprobs, metrics.entropy, h.grad, w.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    for value in results[0][:3]:
        others = [torch.empty_like(value) for _ in range(dist.get_world_size(group))]
        dist.all_gather(others, value, group=group)
        assert all(torch.equal(value, other) for other in others), "ranks disagree"


def worker(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=4)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]  # a group's ranks are not the global ones
    for group in (dist.group.WORLD, pairs[rank // 2]):
        assert isinstance(group, dist.ProcessGroup)
        torch.manual_seed(0)
        for vocab_size in VOCAB_SIZES:
            check_logprobs(group, vocab_size, torch.float32, "cpp")
            check_logprobs(group, vocab_size, torch.bfloat16, "cpp")
            check_logprobs(group, vocab_size, torch.float32, "torch")
            check_policy_loss(group, vocab_size, TOKEN)
            check_policy_loss(group, vocab_size, SEQUENCE)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            check_compiled(group, dtype)
        check_repeats(group, torch.float32)
        check_repeats(group, torch.bfloat16)
        width = WIDTH // dist.get_world_size(group)
        with pytest.raises(ValueError, match=f"within the {WIDTH} columns of {dist.get_world_size(group)} ranks"):
            token_logprobs(torch.zeros(1, width), torch.tensor([0]), group=group, vocab_size=WIDTH + 1)
    dist.destroy_process_group()


def test_split_vocabulary(tmp_path: Path) -> None:
    """Four ranks as one group of four and two groups of two."""
    mp.spawn(worker, args=(str(tmp_path / "rendezvous"),), nprocs=4)
