"""The linear variants against explicit logits: both gradients, chunk borders, frozen sides, and what is never held."""

from __future__ import annotations

from functools import partial
from typing import Any

import naive
import pytest
import torch
from backends import COMPILED, on_cpu, set_chunk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from srpo_kernels import PolicyLossConfig, linear_policy_loss, linear_token_logprobs, reference, statistics
from srpo_kernels import policy_loss as dense_policy_loss
from torch import Tensor

ROWS, WIDTH, HIDDEN = 13, 40, 8


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = torch.randn(ROWS, HIDDEN, dtype=dtype), torch.randn(WIDTH, HIDDEN, dtype=dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(0, 30, (ROWS,))


@pytest.fixture(params=[1, 4, 13, 1000], ids=lambda rows: f"{rows} rows a chunk")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    set_chunk(monkeypatch, request.param * WIDTH)
    return int(request.param)


def test_logprobs_and_gradients(chunk: int) -> None:
    hidden, weight, tokens = make()
    a, b = torch.randn(2, ROWS, dtype=torch.float64)
    want, want_entropy = naive.logprobs(hidden @ weight.T, tokens, 0.8, 30)
    expected = torch.autograd.grad((want * a + want_entropy * b).sum(), (hidden, weight))
    got, entropy = linear_token_logprobs(hidden, weight, tokens, temperature=0.8, return_entropy=True, vocab_size=30)
    gradients = torch.autograd.grad((got * a + entropy * b).sum(), (hidden, weight))
    torch.testing.assert_close((got, entropy), (want, want_entropy), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)
    assert (gradients[1][30:] == 0).all()


@pytest.mark.parametrize(("dtype", "backend", "bound"), [
    (torch.float64, "torch", 1e-12), (torch.float32, "torch", 1e-5), (torch.bfloat16, "torch", 2e-2),
    *[(torch.float32, name, 1e-5) for name in COMPILED], *[(torch.bfloat16, name, 2e-2) for name in COMPILED]])
def test_policy_loss_is_that_of_the_logits(
        chunk: int, dtype: torch.dtype, backend: Any, bound: float) -> None:
    hidden, weight, tokens = make(dtype)
    options: dict[str, Any] = {
        "old_logprobs": reference.linear_token_logprobs(hidden, weight, tokens).detach() + 0.2 * torch.randn(ROWS),
        "mask": torch.rand(ROWS) > 0.2, "cu_seqlens": torch.tensor([0, 4, ROWS]), "vocab_size": 30, "backend": backend,
        "config": PolicyLossConfig(aggregate="sequence", entropy_coef=0.1)}
    advantages = torch.tensor([1.0, -0.5])
    want, want_metrics = dense_policy_loss(hidden @ weight.T, tokens, advantages, **options)
    expected = torch.autograd.grad(want, (hidden, weight))
    got, metrics = linear_policy_loss(hidden, weight, tokens, advantages, **options)
    gradients = torch.autograd.grad(got, (hidden, weight))
    torch.testing.assert_close(got, want, rtol=bound, atol=bound)
    torch.testing.assert_close(metrics.logprobs, want_metrics.logprobs, rtol=bound, atol=bound)
    torch.testing.assert_close(gradients, expected, rtol=bound, atol=bound * float(expected[1].abs().max()))


def test_gradcheck() -> None:
    hidden, weight, tokens = make()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_token_logprobs(h, w, tokens, return_entropy=True, vocab_size=30), (hidden, weight))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_side_gets_no_gradient(frozen: str) -> None:
    hidden, weight, tokens = make()
    both = torch.autograd.grad(linear_token_logprobs(hidden, weight, tokens).sum(), (hidden, weight))
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    linear_token_logprobs(hidden, weight, tokens).sum().backward()
    assert torch.equal(hidden.grad, both[0]) if frozen == "weight" else hidden.grad is None
    assert torch.equal(weight.grad, both[1]) if frozen == "hidden" else weight.grad is None


@pytest.mark.parametrize("function", [linear_token_logprobs, linear_policy_loss])
def test_never_more_logits_than_a_chunk(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, by what the row statistics are asked for."""
    hidden, weight, tokens = make(torch.float32)
    set_chunk(monkeypatch, 3 * WIDTH)
    seen: list[int] = []

    def watch(name: str) -> None:
        original = getattr(statistics, name)

        def call(*args: Any) -> Any:
            logits = args[0] if name == "statistics" else args[2]
            seen.append(len(logits))
            return original(*args)
        monkeypatch.setattr(statistics, name, call)

    watch("statistics"), watch("statistics_backward_")
    extra = (torch.randn(ROWS),) if function is linear_policy_loss else ()
    result = function(hidden, weight, tokens, *extra, backend="torch")
    (result[0] if extra else result.sum()).backward()
    assert sorted(set(seen)) == [1, 3] and sum(seen) == 2 * ROWS  # 13 = 3 + 3 + 3 + 3 + 1


def test_weight_gradient_is_accumulated_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand equal bf16 contributions: a bf16 sum stops growing long before the end."""
    rows = 1000
    set_chunk(monkeypatch, 4)
    hidden = torch.ones(rows, 1, dtype=torch.bfloat16)
    weight = torch.zeros(4, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_token_logprobs(hidden, weight, torch.zeros(rows, dtype=torch.int64)).sum().backward()
    assert weight.grad.flatten().tolist() == [752.0, -250.0, -250.0, -250.0]  # 750 in bf16 is 752
    stuck = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(rows):
        stuck += 0.75
    assert stuck < 500, "the case no longer catches accumulation in bf16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_straight_to_a_buffer(chunk: int, dtype: torch.dtype) -> None:
    """Added to what is there, in float32; autograd gets only the hidden states'."""
    hidden, weight, tokens = make(dtype)
    advantages, mask = torch.randn(ROWS), torch.rand(ROWS) > 0.2
    linear_policy_loss(hidden, weight, tokens, advantages, mask=mask)[0].backward()
    want = (hidden.grad, weight.grad)
    hidden.grad = weight.grad = None
    start = torch.randn(WIDTH, HIDDEN)
    buffer = start.clone()
    linear_policy_loss(hidden, weight, tokens, advantages, mask=mask, weight_grad=buffer)[0].backward()
    assert weight.grad is None and torch.equal(hidden.grad, want[0])
    bound = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(buffer - start, want[1].float(), rtol=bound, atol=1e-5)


@on_cpu
def test_a_buffer_takes_only_a_gradient_of_one(chunk: int) -> None:
    hidden, weight, tokens = make(torch.float32)
    loss, _ = linear_policy_loss(hidden, weight, tokens, torch.randn(ROWS), weight_grad=torch.zeros(WIDTH, HIDDEN))
    with pytest.raises(RuntimeError, match="gradient of 1"):
        (loss * 2).backward()


def test_no_gradient_leaves_the_buffer_alone() -> None:
    hidden, weight, tokens = make(torch.float32)
    buffer = torch.zeros(WIDTH, HIDDEN)
    with torch.no_grad():
        linear_policy_loss(hidden, weight, tokens, torch.randn(ROWS), weight_grad=buffer)
    assert (buffer == 0).all()


@pytest.mark.parametrize(("rows", "expected"), [(ROWS, [3, 0, 1, 2]), (ROWS - 1, [6, 0, 2, 6])])
def test_three_products(rows: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """All with the loss; where it waits for whole sequences and rows take two chunks, a fourth each."""
    set_chunk(monkeypatch, rows * WIDTH)
    hidden, weight, tokens = make(torch.float32)
    counts: list[int] = []

    def count(call: Any) -> Any:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            result = call()
        counts.append(sum(event.name in ("aten::mm", "aten::addmm_") for event in profiler.events()))
        return result

    for config in (PolicyLossConfig(), PolicyLossConfig(ratio="sequence")):
        options: dict[str, Any] = {"cu_seqlens": torch.tensor([0, ROWS]), "config": config}
        loss, _ = count(partial(linear_policy_loss, hidden, weight, tokens, torch.randn(ROWS), **options))
        count(loss.backward)
    assert counts == expected


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_masked_rows_may_hold_anything(chunk: int, ratio: Any) -> None:
    hidden, weight, tokens = make(torch.float32)
    options: dict[str, Any] = {"cu_seqlens": torch.tensor([0, 4, ROWS]), "config": PolicyLossConfig(ratio=ratio)}
    mask = torch.ones(ROWS, dtype=torch.bool)
    mask[[2, 7]] = False
    advantages = torch.randn(ROWS)
    options["mask"] = mask
    clean = torch.autograd.grad(linear_policy_loss(hidden, weight, tokens, advantages, **options)[0], (hidden, weight))
    with torch.no_grad():
        hidden[2], hidden[7] = torch.nan, torch.inf
    tokens[~mask] = -100
    loss, _ = linear_policy_loss(hidden, weight, tokens, advantages, **options)
    poisoned = torch.autograd.grad(loss, (hidden, weight))
    assert torch.equal(clean[0], poisoned[0]) and torch.equal(clean[1], poisoned[1])
    assert (poisoned[0][~mask] == 0).all()


@pytest.mark.parametrize("config", [PolicyLossConfig(), PolicyLossConfig(ratio="sequence")], ids=["token", "sequence"])
def test_autocast_is_a_cast_of_both_sides(config: PolicyLossConfig) -> None:
    """Forward and backward: a backward pass in float32 would not match the logits of the forward pass."""
    hidden, weight, tokens = make(torch.float32)
    advantages, cu_seqlens = torch.randn(ROWS), torch.tensor([0, 4, ROWS])
    options: dict[str, Any] = {"cu_seqlens": cu_seqlens, "config": config}
    want, _ = linear_policy_loss(hidden.bfloat16(), weight.bfloat16(), tokens, advantages, **options)
    expected = torch.autograd.grad(want, (hidden, weight))
    with torch.autocast(hidden.device.type, torch.bfloat16):
        got, _ = linear_policy_loss(hidden, weight, tokens, advantages, **options)
        gradients = torch.autograd.grad(got, (hidden, weight))
    assert torch.equal(got, want)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("function", ["logprobs", "token", "sequence"])
@pytest.mark.parametrize("backend", COMPILED)
def test_padding_rows_of_the_weight_take_no_part(chunk: int, function: str, backend: Any) -> None:
    hidden, weight, tokens = make(torch.float32)

    def run() -> tuple[Tensor, ...]:
        if function == "logprobs":
            loss = linear_token_logprobs(hidden, weight, tokens, vocab_size=30, backend=backend).sum()
        else:
            loss, _ = linear_policy_loss(
                hidden, weight, tokens, torch.arange(ROWS) - 5.0, vocab_size=30, backend=backend,
                cu_seqlens=torch.tensor([0, 4, ROWS]), config=PolicyLossConfig(ratio=function))  # type: ignore[arg-type]
        return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))

    want = run()
    with torch.no_grad():
        weight[30:] = torch.nan
    got = run()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)) and (got[2][30:] == 0).all()


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("transposed", ["hidden", "weight"])
def test_transposed_sides(chunk: int, transposed: str, backend: Any) -> None:
    hidden, weight, tokens = make(torch.float32)
    advantages = torch.randn(ROWS)
    want = torch.autograd.grad(
        linear_policy_loss(hidden, weight, tokens, advantages, backend=backend)[0], (hidden, weight))
    turned = {"hidden": hidden, "weight": weight}
    turned[transposed] = turned[transposed].detach().T.contiguous().T.requires_grad_()
    loss, _ = linear_policy_loss(**turned, tokens=tokens, advantages=advantages, backend=backend)
    torch.testing.assert_close(torch.autograd.grad(loss, tuple(turned.values())), want, rtol=1e-5, atol=1e-6)


def test_frozen_weight_leaves_its_buffer_alone() -> None:
    hidden, weight, tokens = make(torch.float32)
    buffer = torch.zeros(WIDTH, HIDDEN)
    loss, _ = linear_policy_loss(hidden, weight.detach(), tokens, torch.randn(ROWS), weight_grad=buffer)
    (loss * 2).backward()
    assert (buffer == 0).all() and hidden.grad is not None


@settings(deadline=None, max_examples=40, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 9), st.integers(1, 50), st.integers(1, 9), st.integers(1, 60), st.booleans(), st.booleans(),
       st.sampled_from(["token", "sequence"]), st.sampled_from(COMPILED), st.integers(0, 99))
def test_property_like_the_logits(monkeypatch: pytest.MonkeyPatch, rows: int, width: int, size: int, chunk_rows: int,
                                  masked: bool, frozen: bool, ratio: Any, backend: Any, seed: int) -> None:
    """Sizes, offsets with empty sequences, chunk borders, and a vocabulary that ends before its columns."""
    torch.manual_seed(seed)
    set_chunk(monkeypatch, chunk_rows * width)
    hidden, weight = torch.randn(rows, size).requires_grad_(), torch.randn(width, size).requires_grad_(not frozen)
    vocab_size = int(torch.randint(1, width + 1, ()))
    tokens, advantages = torch.randint(0, vocab_size, (rows,)), torch.randn(rows)
    borders = torch.randint(0, rows + 1, (3,)).sort().values
    options: dict[str, Any] = {
        "cu_seqlens": torch.cat([torch.tensor([0]), borders, torch.tensor([rows])]), "vocab_size": vocab_size,
        "mask": torch.rand(rows) > 0.3 if masked else None, "old_logprobs": -3 * torch.rand(rows),
        "config": PolicyLossConfig(ratio=ratio, aggregate="sequence", entropy_coef=0.1)}
    leaves = (hidden,) if frozen else (hidden, weight)
    want, _ = dense_policy_loss(hidden @ weight.T, tokens, advantages, backend="torch", **options)
    got, _ = linear_policy_loss(hidden, weight, tokens, advantages, backend=backend, **options)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), rtol=1e-4, atol=1e-5)


def test_no_rows() -> None:
    hidden, weight, tokens = make()
    linear_policy_loss(hidden[:0], weight, tokens[:0], torch.zeros(0))[0].backward()
    assert (weight.grad == 0).all()


def test_bad_input() -> None:
    hidden, weight, tokens = make()
    with pytest.raises(ValueError, match="of one dtype"):
        linear_token_logprobs(hidden.float(), weight, tokens)
    with pytest.raises(ValueError, match=r"weight \[V, H\]"):
        linear_token_logprobs(hidden, weight[:, :3], tokens)
    with pytest.raises(ValueError, match=r"weight_grad must be \[40, 8\] float32"):
        linear_policy_loss(hidden, weight, tokens, torch.zeros(ROWS), weight_grad=torch.zeros(40, 8).double())
    with pytest.raises(ValueError, match="weight_grad needs"):
        linear_policy_loss(hidden, weight, tokens, torch.zeros(ROWS), cu_seqlens=torch.tensor([0, ROWS]),
                           weight_grad=torch.zeros(40, 8), config=PolicyLossConfig(ratio="sequence"))


@on_cpu
def test_tokens_outside_the_vocabulary() -> None:
    hidden, weight, tokens = make()
    with pytest.raises(IndexError, match=r"\[0, 5\)"):
        linear_token_logprobs(hidden, weight, tokens.clamp(min=5), vocab_size=5)
