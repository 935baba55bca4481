"""The loss and its gradient in one pass: the formulas, what it leaves unread, and how it meets autograd."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from backends import COMPILED, on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from srpo_kernels import PolicyLossConfig, linear_policy_loss, policy_loss, reference
from srpo_kernels.dispatch import implementation
from test_kernels_policy_loss import GRID, SINGLES, batch, gradient, oracle
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pairwise(config: PolicyLossConfig) -> bool:
    """Those of the grid in which every two of its settings have met once."""
    place = [None, "k1", "k2", "k3"].index(config.kl) + bool(config.dual_clip) + 2 * (config.objective == "cispo")
    return ["token", "sequence", "constant"].index(config.aggregate) == place % 3


ONE_PASS = [pytest.param(config, marks=() if config in SINGLES or pairwise(config) else pytest.mark.slow)
            for config in GRID + SINGLES if config.ratio == "token"]


@pytest.mark.parametrize("config", ONE_PASS, ids=str)
def test_matches_the_formulas(one_pass: Any, config: PolicyLossConfig) -> None:
    """Loss, metrics and the whole gradient in float32 against fp64 and autograd, a token at a time."""
    arguments = batch(torch.float32)
    want, want_grad, sums = oracle(arguments, config)
    loss, grad, metrics = gradient(arguments, config=config, backend=one_pass)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), want_grad, rtol=1e-5, atol=1e-6)
    for name, value in sums.items():
        torch.testing.assert_close(getattr(metrics, name).double(), torch.tensor(value).double(), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 9), st.integers(1, 90), st.sampled_from(DTYPES), st.booleans(), st.booleans(), st.booleans(),
       st.sampled_from([0.0, 0.3]), st.sampled_from(["dense", "rows", "columns"]), st.integers(1, 90),
       st.integers(0, 99))
def test_property_like_the_reference(one_pass: Any, rows: int, width: int, dtype: torch.dtype, masked: bool, old: bool,
                                     ref: bool, entropy_coef: float, layout: str, vocab_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits = (torch.randn(rows, width) * 3).to(dtype)
    if layout == "rows":
        logits = torch.stack([logits, logits], 1)[:, 0]
    elif layout == "columns":
        logits = torch.stack([logits, logits], 2)[:, :, 0]
    vocab_size = min(vocab_size, width)
    tokens, advantages = torch.randint(0, vocab_size, (rows,)), torch.randn(rows)
    near = reference.token_logprobs(logits, tokens, vocab_size=vocab_size)
    options: dict[str, Any] = {
        "mask": torch.rand(rows) > 0.4 if masked else None,
        "old_logprobs": near + 0.3 * torch.randn(rows) if old else None,
        "ref_logprobs": near + 0.3 * torch.randn(rows) if ref else None, "vocab_size": vocab_size,
        "config": PolicyLossConfig(kl="k3" if ref else None, kl_coef=0.1 if ref else 0.0, entropy_coef=entropy_coef)}
    results = []
    for backend in (one_pass, "torch"):
        leaf = logits.detach().clone().requires_grad_()
        loss, metrics = policy_loss(leaf, tokens, advantages, backend=backend, **options)
        loss.backward()
        results.append((loss.detach(), metrics.logprobs, metrics.entropy, metrics.kl, leaf.grad.float()))
    bound = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(results[0][:-1], results[1][:-1], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(results[0][-1], results[1][-1], rtol=bound, atol=bound)


def arguments_of(dtype: torch.dtype, rows: int = 6, width: int = 300) -> dict[str, Any]:
    return {"logits": (torch.randn(rows, width) * 3).to(dtype), "tokens": torch.randint(0, width, (rows,)),
            "advantages": torch.randn(rows)}


def test_rows_without_weight_are_not_read(one_pass: Any) -> None:
    arguments = arguments_of(torch.float32)
    mask = torch.tensor([True, False, True, False, True, True])
    arguments["logits"][~mask] = torch.nan
    arguments["tokens"][~mask] = -100
    loss, grad, metrics = gradient(arguments, mask=mask, backend=one_pass)
    assert loss.isfinite() and grad.isfinite().all() and (grad[~mask] == 0).all()
    assert (metrics.logprobs[~mask] == 0).all() and (metrics.entropy[~mask] == 0).all() and metrics.tokens == 4


@pytest.mark.parametrize("function", ["one pass", "torch"])
def test_nothing_counted_is_nothing_to_learn(one_pass: Any, function: str) -> None:
    """A count of 0 from elsewhere, such as the sum over ranks of a batch that is masked throughout."""
    arguments = arguments_of(torch.float32)
    backend = one_pass if function == "one pass" else function
    loss, grad, _ = gradient(arguments, mask=torch.zeros(6, dtype=torch.bool), normalizer=torch.tensor(0.0),
                             backend=backend)
    assert loss == 0 and (grad == 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_what_is_only_observed_may_be_infinite(one_pass: Any, estimator: Any) -> None:
    """A reference that forbids a token makes that KL infinite; without a coefficient the loss does not see it."""
    arguments = arguments_of(torch.float32)
    ref = torch.full((6,), -3.0)
    ref[2] = -torch.inf
    results = [gradient(arguments, ref_logprobs=ref, config=PolicyLossConfig(kl=estimator), backend=backend)
               for backend in (one_pass, "torch")]
    assert results[0][0].isfinite() and results[0][1].isfinite().all() and not results[0][2].kl.isfinite()
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=1e-5, atol=1e-6)


def test_clipped_rows_have_exactly_no_gradient(one_pass: Any) -> None:
    arguments = arguments_of(torch.bfloat16)
    arguments["advantages"] = torch.tensor([1.0, 1.0, 0.0, -1.0, -1.0, 0.0])
    old = reference.token_logprobs(arguments["logits"], arguments["tokens"])
    old += torch.tensor([-1.0, 1.0, -1.0, -1.0, 1.0, 0.0])
    _, grad, metrics = gradient(arguments, old_logprobs=old, backend=one_pass)
    assert (grad != 0).any(1).tolist() == [False, True, False, True, False, False]
    assert metrics.clipped == 2


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_row_is_not_hidden(one_pass: Any, bad: float) -> None:
    arguments = arguments_of(torch.float32)
    arguments["logits"][1, 250] = bad
    loss, grad, metrics = gradient(arguments, backend=one_pass)
    assert loss.isnan() and metrics.logprobs.isnan().tolist() == [False, True] + [False] * 4
    assert grad[1].isnan().any() and grad[[0, 2, 3, 4, 5]].isfinite().all()


def test_likely_token_keeps_its_gradient(one_pass: Any) -> None:
    """p - 1 = -1e-4 survives bf16; formed after rounding p to bf16, it would be 0."""
    logits = torch.zeros(1, 1001, dtype=torch.bfloat16)
    logits[0, 0] = 16.125
    tokens = torch.zeros(1, dtype=torch.int64)
    _, grad, _ = gradient({"logits": logits, "tokens": tokens, "advantages": torch.ones(1)}, backend=one_pass)
    p = torch.softmax(logits.double(), 1)[0, 0]
    torch.testing.assert_close(grad[0, 0].double(), p - 1, rtol=2**-8, atol=0)
    assert p.bfloat16() - 1 == 0 and p - 1 != 0, "the case no longer catches rounding before subtraction"


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_losses(one_pass: Any, dtype: torch.dtype) -> None:
    """Any incoming gradient, decided on the device; 1 leaves the gradient as it is, bit for bit."""
    arguments = arguments_of(dtype)
    gradients = []
    for scale in (None, 1.0, 0.5):
        leaf = arguments["logits"].clone().requires_grad_()
        loss, _ = policy_loss(leaf, arguments["tokens"], arguments["advantages"], backend=one_pass)
        loss.backward(None if scale is None else torch.tensor(scale))
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1])
    tiny = torch.finfo(dtype).tiny
    torch.testing.assert_close(gradients[2].float(), gradients[0].float() / 2, rtol=0, atol=tiny)


@pytest.mark.parametrize("linear", [False, True])
def test_a_second_backward_pass_is_refused(one_pass: Any, linear: bool) -> None:
    """The gradient was handed out; scaling it again in place would be silently wrong."""
    arguments = arguments_of(torch.float32, width=20)
    if linear:
        leaf = torch.randn(6, 4, requires_grad=True)
        loss, _ = linear_policy_loss(leaf, torch.randn(20, 4), arguments["tokens"], arguments["advantages"],
                                     backend=one_pass)
    else:
        leaf = arguments["logits"].requires_grad_()
        loss, _ = policy_loss(leaf, arguments["tokens"], arguments["advantages"], backend=one_pass)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_gradient_is_computed_when_none_is_needed(one_pass: Any) -> None:
    arguments = arguments_of(torch.float32)
    with torch.no_grad():
        quiet, metrics = policy_loss(**arguments, backend=one_pass)
    loss, _, other = gradient(arguments, backend=one_pass)
    assert quiet == loss and torch.equal(metrics.entropy, other.entropy) and not quiet.requires_grad
    per_row = (torch.ones(6), torch.ones(6), None, None, None)
    rest = (1.0, 300, 0.2, 0.28, torch.inf, False, 3, 0.0, 0.0, torch.inf)
    _, _, grad = implementation(arguments["logits"], one_pass).policy_loss_rows(
        arguments["logits"], arguments["tokens"], *per_row, *rest, False)
    assert grad.shape == (0, 300)


@on_cpu
def test_repeats_exactly_for_any_number_of_threads() -> None:
    """Few rows share their segments among threads; the arithmetic is the same."""
    for rows in (1, 2, 33):
        arguments = arguments_of(torch.bfloat16, rows, 20_000)
        one = gradient(arguments, config=PolicyLossConfig(entropy_coef=0.1), backend="cpp")
        torch.set_num_threads(4)
        many = gradient(arguments, config=PolicyLossConfig(entropy_coef=0.1), backend="cpp")
        torch.set_num_threads(1)
        assert torch.equal(one[0], many[0]) and torch.equal(one[1], many[1])
        assert torch.equal(one[2].logprobs, many[2].logprobs)


def test_more_rows_than_a_grid_dimension() -> None:
    arguments = arguments_of(torch.float32, 70_000, 3)
    want = gradient(arguments, backend="torch")
    got = gradient(arguments, backend=COMPILED[0])
    torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_operator_registrations(one_pass: Any, dtype: torch.dtype) -> None:
    arguments = arguments_of(dtype, 3, 40)
    logits, tokens = arguments["logits"], arguments["tokens"]
    module = implementation(logits, one_pass)
    per_row = torch.rand(3, 3)
    rest = (tokens, arguments["advantages"], torch.ones(3), per_row[0], per_row[1], None,
            1.0, 40, 0.2, 0.28, 3.0, False, 3, 0.1, 0.1, torch.inf)
    # Its gradient exists once, so the checks that differentiate twice through one result do not apply.
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(module.policy_loss_rows.default, (logits.clone().requires_grad_(), *rest, True),
                          test_utils=checks)
    torch.library.opcheck(module.policy_loss_rows.default, (logits, *rest, False))
    torch.library.opcheck(module.policy_loss_rows_.default, (logits.clone(), *rest))
    torch.library.opcheck(module.scale_rows_.default, (logits.clone(), torch.rand(3)))


def test_metrics_are_those_of_the_reference(one_pass: Any) -> None:
    arguments = batch(torch.float32)
    config = PolicyLossConfig(kl="k2", kl_coef=0.1, tis_cap=1.2, entropy_coef=0.01)
    _, _, want = gradient(copy.deepcopy(arguments), config=config, backend="torch")
    _, _, got = gradient(arguments, config=config, backend=one_pass)
    for field in dataclasses.fields(got):
        value, expected = getattr(got, field.name), getattr(want, field.name)
        assert isinstance(value, Tensor) and value.dtype == expected.dtype and not value.requires_grad
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
