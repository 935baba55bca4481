"""Tests of the Triton kernels, for test_kernels_triton.py: against fp64, in full gradients, and the traps that naive
versions fall into, each shown to catch one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import naive
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from srpo_kernels import (
    PolicyLossConfig,
    group_advantage,
    statistics,
    tiles,
    token_logprobs,
    triton_advantage,
    triton_ops,
)
from srpo_kernels import policy_loss as public_policy_loss
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Of a value stored in a type, relative to the largest of its row: to nearest, but Triton's interpreter truncates bf16.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7 if triton_ops.INTERPRETED else 2**-8, torch.float16: 2**-10}
EXACT = {"rtol": 0, "atol": 0, "equal_nan": True}
HERE = torch.zeros(0, device=DEVICE).device
CAPABILITY, TILES = tiles.device(HERE).capability, tiles.device(HERE).tiles
ops = torch.ops.srpo_triton
every_type = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def tile(dtype: torch.dtype, of: tiles.Tile = TILES.loss) -> int:
    return of.k * 32 * of.warps * 16 // dtype.itemsize


def make(rows: int, width: int, dtype: torch.dtype = torch.float32, scale: float = 4.0) -> tuple[Tensor, Tensor]:
    logits, tokens = (torch.randn(rows, width) * scale).to(dtype), torch.randint(0, width, (rows,))
    return logits.to(DEVICE), tokens.to(DEVICE)


def close(got: Tensor, want: Tensor, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> None:
    """Within rounding of the largest value of a row; for fp16 within its smallest subnormal as well."""
    largest = want.abs().amax(-1, keepdim=True) if want.dim() > 1 else want.abs()
    bound = ROUNDING[dtype] * largest.clamp(min=scale) + (2**-25 if dtype == torch.float16 else 0)
    error = (got.double() - want).abs()
    assert bool((error <= bound).all()), f"{(error / bound).max():.3g} times the bound"


def check_statistics(logits: Tensor, tokens: Tensor, temperature: float = 1.0, columns: int | None = None) -> None:
    """Statistics, and the gradient of a random combination of them in and out of place, against fp64."""
    columns = logits.shape[1] if columns is None else columns
    got = ops.logprob_statistics(logits, tokens, temperature, columns)
    exact = logits.double()
    want = statistics.statistics(exact, tokens, temperature, columns)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    grad = torch.randn(len(logits), 4, device=DEVICE)
    dx = ops.logprob_statistics_backward(grad, got, logits, tokens, temperature, columns)
    want_dx = statistics.statistics_backward(grad.double(), want, exact, tokens, temperature, columns)
    assert dx.dtype == logits.dtype and dx.is_contiguous() and not dx[:, columns:].any()
    close(dx, want_dx, logits.dtype)
    overwritten = logits.clone(memory_format=torch.preserve_format)
    assert ops.logprob_statistics_backward_(grad, got, overwritten, tokens, temperature, columns) is None
    torch.testing.assert_close(overwritten, dx, **EXACT)


@every_type
@pytest.mark.parametrize("width", [1, 2, 7, 8, 100, 4095, 4096, 4097, 8193])
def test_statistics(dtype: torch.dtype, width: int) -> None:
    check_statistics(*make(3, width, dtype))


@every_type
@pytest.mark.parametrize("beyond", [-1, 0, 1, 16])
def test_statistics_around_tiles(dtype: torch.dtype, beyond: int) -> None:
    width = 2 * tile(dtype, TILES.statistics) + beyond
    check_statistics(*make(2, width, dtype), temperature=0.7, columns=width - 3)


@pytest.mark.parametrize("columns", [0, 1, 8, 40, 199])
def test_padding_takes_no_part(columns: int) -> None:
    logits, tokens = make(3, 200)
    logits[:, columns:] = torch.tensor([math.nan, math.inf, 1e30], device=DEVICE)[:, None]
    clean = logits.clone()
    clean[:, columns:] = 0
    statistics_ = ops.logprob_statistics(logits, tokens, 1.0, columns)
    torch.testing.assert_close(statistics_, ops.logprob_statistics(clean, tokens, 1.0, columns), **EXACT)
    dx = ops.logprob_statistics_backward(torch.ones(3, 4, device=DEVICE), statistics_, logits, tokens, 1.0, columns)
    assert dx.isfinite().all() and not dx[:, columns:].any()


# policy_loss_rows


def options(columns: int, **changes: Any) -> dict[str, Any]:
    defaults = {"temperature": 1.0, "columns": columns, "clip_low": 0.2, "clip_high": 0.28, "dual_clip": math.inf,
                "cispo": False, "kl": 3, "kl_coef": 0.0, "entropy_coef": 0.0, "tis_cap": 1.0}
    return {**defaults, **changes}


def rows_of(logits: Tensor, tokens: Tensor, of: dict[str, Any], *, off_policy: float = 0.4) -> tuple[Any, ...]:
    """Advantages, weights and old, ref and rollout log-probs, some way off the policy's own."""
    rows = len(tokens)
    own, _ = naive.logprobs(logits, tokens, of["temperature"], of["columns"])
    around = [(own + torch.randn(rows, device=DEVICE) * off_policy).float() for _ in range(3)]
    return torch.randn(rows, device=DEVICE), torch.rand(rows, device=DEVICE) + 0.1, *around


def oracle(logits: Tensor, tokens: Tensor, advantages: Tensor, weights: Tensor, old: Tensor | None, ref: Tensor | None,
           rollout: Tensor | None, of: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Each row by the formulas of naive.py, in fp64, and autograd; masked rows left out."""
    exact = logits.double().requires_grad_()
    config = PolicyLossConfig(
        clip_low=of["clip_low"], clip_high=of["clip_high"], objective="cispo" if of["cispo"] else "clip",
        dual_clip=None if math.isinf(of["dual_clip"]) else of["dual_clip"])
    logprobs, entropies = naive.logprobs(exact, tokens, of["temperature"], of["columns"])
    losses, values = [], []
    for n in range(len(tokens)):
        if weights[n] == 0:
            losses.append(exact.new_zeros(()))
            values.append([0.0] * 5)
            continue
        lp = logprobs[n]
        behind = lp.detach() if old is None else old[n].double()
        policy, clipped = naive._policy(lp, (lp - behind).exp(), advantages[n].double(), config)
        if rollout is not None:
            policy = policy * (behind - rollout[n].double()).exp().clamp(max=of["tis_cap"])
        kl = lp.new_zeros(()) if ref is None else naive._kl(lp - ref[n].double(), f"k{of['kl']}")
        losses.append(weights[n].double() * (policy + of["kl_coef"] * kl - of["entropy_coef"] * entropies[n]))
        values.append([float(torch.as_tensor(v).detach()) for v in (lp, entropies[n], policy, kl, clipped)])
    loss = torch.stack(losses)
    if loss.requires_grad:  # not where every row is masked
        loss.sum().backward()
    grad = torch.zeros_like(exact) if exact.grad is None else exact.grad
    return loss.detach(), torch.tensor(values, dtype=torch.float64, device=DEVICE), grad


def check_policy(logits: Tensor, tokens: Tensor, rows: tuple[Any, ...], of: dict[str, Any]) -> None:
    want_loss, want_values, want_grad = oracle(logits, tokens, *rows, of)
    loss, values, grad = ops.policy_loss_rows(logits, tokens, *rows, *of.values(), True)
    assert grad.dtype == logits.dtype and grad.is_contiguous() and loss.dtype == values.dtype == torch.float32
    # Log-probs are rounded to float32 where they are 10; ratios, and what is multiplied by one, inherit that.
    torch.testing.assert_close(values.double(), want_values, rtol=5e-6, atol=5e-6)
    torch.testing.assert_close(loss.double(), want_loss, rtol=5e-6, atol=5e-6)
    close(grad, want_grad, logits.dtype, scale=1.0 if logits.dtype == torch.float32 else 0.0)
    forward = ops.policy_loss_rows(logits, tokens, *rows, *of.values(), False)
    assert forward[2].shape == (0, logits.shape[1])
    torch.testing.assert_close(forward[:2], (loss, values), rtol=2e-6, atol=2e-6)  # its tiles are others
    overwritten = logits.clone(memory_format=torch.preserve_format)
    in_place = ops.policy_loss_rows_(overwritten, tokens, *rows, *of.values())
    torch.testing.assert_close((*in_place, overwritten), (loss, values, grad), **EXACT)


@every_type
@pytest.mark.parametrize("width", [1, 7, 4095, 4096, 4097])
def test_policy_loss(dtype: torch.dtype, width: int) -> None:
    logits, tokens = make(3, width, dtype)
    of = options(width, kl=3, kl_coef=0.1, entropy_coef=0.05, tis_cap=1.3)
    check_policy(logits, tokens, rows_of(logits, tokens, of), of)


@every_type
@pytest.mark.parametrize("kind", ["loss", "loss_small"])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_policy_loss_around_tiles(dtype: torch.dtype, kind: str, beyond: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tiles, chosen by the vocabulary's size against the L2 cache, and a row of several of them."""
    share = tiles.Share(0.0 if kind == "loss" else math.inf, "")
    monkeypatch.setitem(tiles.TABLE, CAPABILITY, TILES._replace(l2_share=share))
    of_kind = getattr(TILES, kind)
    assert tiles.device(HERE).loss_tile(2**20) == of_kind
    width = 2 * tile(dtype, of_kind) + beyond
    logits, tokens = make(2, width, dtype)
    of = options(width, entropy_coef=0.05)
    check_policy(logits, tokens, rows_of(logits, tokens, of), of)


def variants() -> Iterator[Any]:
    """Under the interpreter those in which every two settings meet are the fast tests."""
    for cispo, kl, dual, entropy in itertools.product((False, True), (1, 2, 3), (math.inf, 1.3), (0.0, 0.2)):
        if not (cispo and dual == 1.3):
            slow = triton_ops.INTERPRETED and (kl + (dual == 1.3) + (entropy > 0)) % 2
            yield pytest.param(dict(cispo=cispo, kl=kl, kl_coef=0.3, dual_clip=dual, entropy_coef=entropy),
                               marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("changes", variants(), ids=str)
def test_policy_loss_variants(changes: dict[str, Any]) -> None:
    logits, tokens = make(12, 60, scale=2.0)
    of = options(57, temperature=0.7, tis_cap=1.2, **changes)
    tokens = tokens.clamp(max=56)
    advantages, weights, old, ref, rollout = rows_of(logits, tokens, of)
    weights[3] = 0
    rows = (advantages, weights, old, ref, rollout)
    check_policy(logits, tokens, rows, of)
    clipped = ops.policy_loss_rows(logits, tokens, *rows, *of.values(), False)[1][:, 4]
    assert 1 <= int(clipped.sum()) <= 10  # the comparison would prove little if nothing or everything were clipped


@pytest.mark.parametrize("given_", list(itertools.product((False, True), repeat=3)), ids=str)
def test_policy_loss_without_some_logprobs(given_: tuple[bool, ...]) -> None:
    logits, tokens = make(4, 50)
    of = options(50, kl=3, kl_coef=0.2, tis_cap=1.1)
    advantages, weights, *others = rows_of(logits, tokens, of)
    others = [x if wanted else None for x, wanted in zip(others, given_, strict=True)]
    check_policy(logits, tokens, (advantages, weights, *others), of)


# Traps


def test_running_maximum_below_zero() -> None:
    """A maximum that starts at 0 underflows every exponential of a row that lies below."""
    logits, tokens = make(3, 9000)
    logits -= 300
    assert (logits - 0.0).exp().sum(1).log().isneginf().all()
    check_statistics(logits, tokens)


def test_ragged_block_does_not_count() -> None:
    """Elements beyond the row, read as 0, would add as many exponentials as there are, and be the maximum of this."""
    logits, tokens = make(2, 5001)
    logits -= 50
    wrong = torch.nn.functional.pad(logits, (0, 8192 - 5001)).double().logsumexp(1)
    assert (wrong - logits.double().logsumexp(1)).min() > 1
    check_statistics(logits, tokens)


@every_type
def test_minus_infinity_in_whole_tiles(dtype: torch.dtype) -> None:
    """-inf - -inf is NaN, and 0 * -inf too: in lanes, tiles and, in a row of nothing else, everywhere."""
    width = 2 * tile(dtype) + 100
    logits, tokens = make(5, width, dtype)
    logits[0, : tile(dtype)] = -math.inf
    logits[1, tile(dtype):] = -math.inf
    logits[2, 1:] = -math.inf
    logits[3, ::3] = -math.inf
    tokens[:] = torch.tensor([width - 1, 3, 0, 1, 0], device=DEVICE)
    shifted = (logits[3].float() - logits[3].float().max())
    assert (shifted.exp() * shifted).sum().isnan()  # what the entropy must not be made of
    check_statistics(logits[:4], tokens[:4])
    logits[4] = -math.inf
    got = ops.logprob_statistics(logits, tokens, 1.0, width)
    assert got[4].tolist() == [-math.inf, 0, 0, -math.inf]
    of = options(width, entropy_coef=0.1)
    loss, values, grad = ops.policy_loss_rows(
        logits[:4], tokens[:4], *[torch.ones(4, device=DEVICE)] * 2, None, None, None, *of.values(), True)
    assert loss.isfinite().all() and values.isfinite().all() and grad.isfinite().all()
    assert not grad[logits[:4] == -math.inf].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rest", ["numbers", "minus infinity"])
@pytest.mark.parametrize("at", [0, 4000, 17000])
def test_nan_and_infinity_reach_the_results(bad: float, rest: str, at: int) -> None:
    """PTX's max returns the other operand for a NaN: a bound against overflow hides it."""
    logits, tokens = make(2, 17001)
    if rest != "numbers":
        logits[0] = -math.inf
        logits[0, 7] = 1.0
    logits[0, at] = bad
    tokens[0] = 7
    got = ops.logprob_statistics(logits, tokens, 1.0, 17001)
    assert got[0, 1:3].isnan().all() and got[1].isfinite().all()
    dx = ops.logprob_statistics_backward(torch.ones(2, 4, device=DEVICE), got, logits, tokens, 1.0, 17001)
    assert dx[0].isnan().any() and dx[1].isfinite().all()
    of = options(17001, entropy_coef=0.1, kl=3, kl_coef=0.1)
    ones = torch.ones(2, device=DEVICE)
    loss, values, grad = ops.policy_loss_rows(logits, tokens, ones, ones, 0 * ones - 9, 0 * ones - 9, None,
                                              *of.values(), True)
    assert loss[0].isnan() and values[0, :4].isnan().all() and grad[0].isnan().all()
    assert loss[1].isfinite() and grad[1].isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_large_common_offset_is_exact(temperature: float) -> None:
    """lse - x_y loses all digits to the offset in float32; (x_y - m) / T - log s none."""
    base, tokens = make(3, 300)
    base = (base * 8).round() / 8  # so that the sum with the offset is exact
    offset = base + 2.0**20
    want, _ = naive.logprobs(base, tokens, temperature)
    wrong = (offset / temperature).gather(1, tokens[:, None])[:, 0] - (offset / temperature).logsumexp(1)
    assert (wrong.double() - want).abs().max() > 1e-3
    got = token_logprobs(offset, tokens, temperature=temperature, backend="triton")
    close(got, want)
    of = options(300, temperature=temperature)
    ones = torch.ones(3, device=DEVICE)
    values = ops.policy_loss_rows(offset, tokens, ones, ones, None, None, None, *of.values(), False)[1]
    close(values[:, 0], want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_likely_token_keeps_its_gradient(dtype: torch.dtype) -> None:
    """p_y - 1, formed after p_y was rounded, is 0 for a likely token."""
    logits = torch.full((1, 100), -13.0, dtype=dtype, device=DEVICE)
    logits[0, 5] = 0
    tokens, one = torch.tensor([5], device=DEVICE), torch.ones(1, device=DEVICE)
    want = torch.softmax(logits.double(), 1)
    want[0, 5] -= 1
    naive_gradient = torch.softmax(logits.float(), 1).to(dtype)
    naive_gradient[0, 5] -= 1
    assert naive_gradient[0, 5] == 0 and want[0, 5] < -1e-4
    _, _, grad = ops.policy_loss_rows(logits, tokens, one, one, None, None, None, *options(100).values(), True)
    torch.testing.assert_close(grad[0, 5].double(), want[0, 5], rtol=2 * ROUNDING[dtype], atol=0)
    logits = logits.requires_grad_()
    (-token_logprobs(logits, tokens, backend="triton")).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0, 5].double(), want[0, 5], rtol=2 * ROUNDING[dtype], atol=0)


@pytest.mark.parametrize("difference", [0.0, 1e-7, 1e-5, -1e-5, 3e-3, -0.2, 0.3, 0.9, -0.9, 1.1, -1.1, -5.0, 25.0,
                                        -25.0, 300.0])
def test_k3(difference: float) -> None:
    """In float32 exp(d) - 1 - d, and its derivative exp(d) - 1, are noise for small d; for large they overflow."""
    logits, tokens = make(1, 2, scale=0.0)  # log-prob exactly known to float32: log 1/2
    of = options(2, kl=3, kl_coef=1.0)
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    own = ops.policy_loss_rows(logits, tokens, zero, one, None, None, None, *of.values(), False)[1][:, 0]
    ref = own - difference
    d = min((ref.double() - own.double()).item(), 20.0)
    k3, by_x = math.expm1(d) - d, 0.0 if -difference > 20 else -math.expm1(d)
    if abs(d) < 1e-2:  # the series, as fp64 cancels too
        k3 = d * d * (1 / 2 + d / 6 + d * d / 24)
    loss, values, grad = ops.policy_loss_rows(logits, tokens, zero, one, None, ref, None, *of.values(), True)
    assert values[0, 3].item() == pytest.approx(k3, rel=3e-6)
    assert loss[0].item() == pytest.approx(k3, rel=3e-6)
    assert grad[0, tokens[0]].item() == pytest.approx(by_x / 2, rel=3e-6)
    single = torch.tensor(d, dtype=torch.float32)
    if 0 < abs(d) < 1e-4:
        assert abs((single.exp() - 1 - single).item() / k3 - 1) > 1e-2


def test_log_ratio_bound() -> None:
    """A ratio beyond exp(20) neither overflows nor has a gradient; at the bound it does."""
    logits, tokens = make(3, 30)
    own, _ = naive.logprobs(logits, tokens)
    old = (own - torch.tensor([200.0, 19.0, -200.0], dtype=torch.float64, device=DEVICE)).float()
    ones = torch.ones(3, device=DEVICE)
    assert (own.float() - old).exp()[0].isinf()
    loss, _, grad = ops.policy_loss_rows(logits, tokens, -ones, ones, old, None, None,
                                         *options(30, clip_low=1.0).values(), True)
    assert loss[0].item() == pytest.approx(math.exp(20), rel=1e-5) and loss[1].item() == pytest.approx(
        math.exp(19), rel=1e-4)
    assert not grad[0].any() and grad[1].any() and not grad[2].any()


def test_masked_rows_are_not_read() -> None:
    """Weight 0, or a gradient of 0: exactly 0 whatever the row holds, where 0 * NaN would be NaN."""
    logits, tokens = make(6, 5000)
    ones = torch.ones(6, device=DEVICE)
    weights = torch.tensor([1.0, 0, 1, 0, 0, 1], device=DEVICE)
    of = options(5000, kl=3, kl_coef=0.1, entropy_coef=0.1)
    want = ops.policy_loss_rows(logits, tokens, ones, weights, None, -ones, None, *of.values(), True)
    logits[weights == 0] = torch.tensor([math.nan, math.inf, -math.inf], device=DEVICE)[:, None]
    tokens[weights == 0] = torch.tensor([-1, 10**12, 5000], device=DEVICE)
    got = ops.policy_loss_rows(logits, tokens, ones, weights, None, -ones, None, *of.values(), True)
    torch.testing.assert_close(got, want, **EXACT)
    assert all(not part[weights == 0].any() for part in got)
    statistics_ = ops.logprob_statistics(logits, tokens, 1.0, 5000)
    grad = weights[:, None] * torch.ones(6, 4, device=DEVICE)
    assert (0 * logits)[1].isnan().all()
    dx = ops.logprob_statistics_backward(grad, statistics_, logits, tokens, 1.0, 5000)
    assert not dx[weights == 0].any() and dx[weights != 0].isfinite().all()


def test_zero_coefficient_is_zero_filled() -> None:
    """A clipped token, and an advantage of 0, have a gradient of exactly 0 without a second sweep."""
    logits, tokens = make(3, 70)
    own, _ = naive.logprobs(logits, tokens)
    advantages = torch.tensor([1.0, 0.0, 1.0], device=DEVICE)
    old = (own - torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64, device=DEVICE)).float()
    _, values, grad = ops.policy_loss_rows(logits, tokens, advantages, torch.ones(3, device=DEVICE), old, None, None,
                                           *options(70).values(), True)
    assert values[:, 4].tolist() == [1, 0, 0] and not grad[:2].any() and grad[2].any()


def test_target_outside_the_columns() -> None:
    """A shard that does not hold the token: x_y is 0, and its gradient goes nowhere."""
    logits, _ = make(4, 64)
    tokens = torch.tensor([-1, 64, 40, 10], device=DEVICE)
    statistics_ = ops.logprob_statistics(logits, tokens, 1.0, 40)
    assert statistics_[:3, 3].tolist() == [0, 0, 0] and statistics_[3, 3] == logits[3, 10]
    grad = torch.tensor([[0.0, 0, 0, 1]] * 4, device=DEVICE)
    dx = ops.logprob_statistics_backward(grad, statistics_, logits, tokens, 1.0, 40)
    assert not dx[:3].any() and dx[3, 10] == 1 and dx[3].count_nonzero() == 1


def test_more_rows_than_programs() -> None:
    logits, tokens = make(2000 if DEVICE == "cuda" else 11, 40)
    check_statistics(logits, tokens)
    of = options(40)
    check_policy(logits[:11], tokens[:11], rows_of(logits[:11], tokens[:11], of), of)


def test_row_offsets_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 2^30 elements apart, in memory that is reserved but, between them, never touched."""
    if triton_ops.INTERPRETED:  # it would write the whole storage back over itself
        monkeypatch.setattr("triton.runtime.interpreter.GridExecutor._restore_args_dev", lambda *_: None)
    stride, width = 2**30 + 16, 40
    assert 2 * stride > 2**31
    logits = torch.empty(2 * stride + width, dtype=torch.bfloat16, device=DEVICE).as_strided((3, width), (stride, 1))
    values, tokens = make(3, width, torch.bfloat16)
    ones = torch.ones(3, device=DEVICE)
    of = options(width, entropy_coef=0.1)
    statistics_ = ops.logprob_statistics(values, tokens, 1.0, width)
    grad = torch.ones(3, 4, device=DEVICE)
    for run in (lambda x: ops.logprob_statistics(x, tokens, 1.0, width),
                lambda x: ops.logprob_statistics_backward_(grad, statistics_, x, tokens, 1.0, width),
                lambda x: ops.policy_loss_rows_(x, tokens, ones, ones, None, None, None, *of.values()),
                lambda x: ops.scale_rows_(x, 2 * ones)):
        dense = values.clone()
        logits.copy_(values)
        results = run(dense)
        torch.testing.assert_close(run(logits), results, **EXACT)
        torch.testing.assert_close(logits, dense, **EXACT)


# Rows to scale, layouts, registrations


@every_type
@pytest.mark.parametrize("width", [1, 100, 4097])
def test_scale_rows(dtype: torch.dtype, width: int) -> None:
    matrix, _ = make(4, width, dtype)
    matrix[2, 0] = math.nan
    scale = torch.tensor([1.0, -0.3, 1.0, 0.0], device=DEVICE)
    want = (matrix.double() * scale[:, None]).nan_to_num(nan=7)
    scaled = matrix.clone()
    version = scaled._version
    assert ops.scale_rows_(scaled, scale) is None and scaled._version == version + 1
    torch.testing.assert_close(scaled[::2], matrix[::2], **EXACT)
    close(scaled.nan_to_num(nan=7), want, dtype, scale=0.0)


def test_scale_of_stride_zero() -> None:
    """grad_output of a sum is expanded: read as if it were dense, its second element is another tensor's."""
    buffer = torch.tensor([3.0, 5.0, 7.0, 9.0], device=DEVICE)
    scale = buffer[:1].expand(4)
    assert scale.stride() == (0,) and torch.as_strided(scale, (4,), (1,)).tolist() == [3, 5, 7, 9]
    matrix = torch.ones(4, 33, device=DEVICE)
    ops.scale_rows_(matrix, scale)
    assert (matrix == 3).all()
    every_other = torch.ones(2, 33, device=DEVICE)
    ops.scale_rows_(every_other, buffer[::2])
    assert every_other[:, 0].tolist() == [3, 7]


def lay_out(logits: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    rows, width = logits.shape
    if layout == "transposed":
        return logits.T.clone(memory_format=torch.contiguous_format).T
    if layout == "rows":
        return torch.stack([logits, logits], 1)[:, 0]
    if layout == "columns":
        return torch.stack([logits, logits], 2)[:, :, 0]
    if layout == "padded":
        return torch.nn.functional.pad(logits, (3, 5), value=math.nan)[:, 3:3 + width]
    return logits.clone()


# Not shrunk: under the interpreter that takes minutes.
@settings(deadline=None, max_examples=40, derandomize=True, phases=[Phase.generate])
@given(st.integers(0, 7), st.integers(1, 300), st.sampled_from(DTYPES), st.sampled_from([0.01, 1.0, 30.0]),
       st.sampled_from(["dense", "transposed", "rows", "columns", "padded"]), st.integers(0, 5), st.integers(0, 99))
def test_property_shapes_types_and_strides(rows: int, width: int, dtype: torch.dtype, scale: float, layout: str,
                                           padding: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits, tokens = make(rows, width, dtype, scale)
    columns = max(1, width - padding)
    tokens = tokens.clamp(max=columns - 1)
    strided = lay_out(logits, layout)
    weights = (torch.rand(rows, device=DEVICE) > 0.3).float()
    ones, of = torch.ones(rows, device=DEVICE), options(columns, entropy_coef=0.1)
    arguments = (tokens, ones, weights, None, None, None, *of.values())
    dense = ops.policy_loss_rows(logits, *arguments, True)
    torch.testing.assert_close(ops.policy_loss_rows(strided, *arguments, True), dense, **EXACT)
    in_place = ops.policy_loss_rows_(strided, *arguments)
    torch.testing.assert_close((*in_place, strided), dense, **EXACT)
    if rows:
        check_statistics(lay_out(logits, layout), tokens, columns=columns)
        want = oracle(logits, tokens, ones, weights, None, None, None, of)
        torch.testing.assert_close(dense[1].double(), want[1], rtol=1e-5, atol=1e-5)
        close(dense[2], want[2], dtype)


def test_bits_are_the_same_in_every_run() -> None:
    logits, tokens = make(5, 9001, torch.bfloat16)
    of = options(9001, kl=3, kl_coef=0.1, entropy_coef=0.1)
    rows = rows_of(logits, tokens, of)
    first = ops.policy_loss_rows(logits, tokens, *rows, *of.values(), True)
    for _ in range(3):
        torch.testing.assert_close(ops.policy_loss_rows(logits, tokens, *rows, *of.values(), True), first, **EXACT)
    alone = ops.policy_loss_rows(logits[3:4], tokens[3:4], *[x[3:4] for x in rows], *of.values(), True)
    torch.testing.assert_close(alone, tuple(x[3:4] for x in first), **EXACT)  # nor do they depend on other rows


def test_operator_registrations() -> None:
    logits, tokens = make(4, 30)
    of = options(30, kl=3, kl_coef=0.1)
    rows = rows_of(logits, tokens, of)
    leaf = logits.clone().requires_grad_()
    statistics_ = ops.logprob_statistics(logits, tokens, 1.0, 30)
    grad = torch.ones(4, 4, device=DEVICE)
    # The gradient of the loss exists once: the checks that differentiate twice through one result do not apply.
    torch.library.opcheck(ops.policy_loss_rows, (leaf, tokens, *rows, *of.values(), True),
                          test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))
    for operator, arguments in (
            (ops.logprob_statistics, (leaf, tokens, 1.0, 30)),
            (ops.logprob_statistics_backward, (grad, statistics_, logits, tokens, 1.0, 30)),
            (ops.logprob_statistics_backward_, (grad, statistics_, logits.clone(), tokens, 1.0, 30)),
            (ops.policy_loss_rows, (logits, tokens, *rows, *of.values(), False)),
            (ops.policy_loss_rows_, (logits.clone(), tokens, *rows, *of.values())),
            (ops.scale_rows_, (logits.clone(), torch.rand(4, device=DEVICE)))):
        torch.library.opcheck(operator, arguments)


def test_overwriting_is_noticed_by_autograd() -> None:
    logits, tokens = make(3, 20)
    x = logits.clone().requires_grad_() * 1.0
    y = x.sin().sum()  # saves x
    ops.policy_loss_rows_(x.detach(), tokens, *[torch.ones(3, device=DEVICE)] * 2, None, None, None,
                          *options(20).values())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_public_functions() -> None:
    """From the public interface with backend="triton": the loss of a batch and its gradient, scaled."""
    logits, tokens = make(9, 50, torch.bfloat16)
    advantages, _, old, ref, rollout = rows_of(logits, tokens, options(50))
    mask = torch.rand(9, device=DEVICE) > 0.3
    config = PolicyLossConfig(kl="k3", kl_coef=0.1, entropy_coef=0.01, tis_cap=1.5)
    given_ = {"old_logprobs": old, "ref_logprobs": ref, "rollout_logprobs": rollout, "mask": mask, "config": config}
    results = {}
    for backend in ("triton", "torch"):
        leaf = logits.clone().requires_grad_()
        loss, metrics = public_policy_loss(leaf, tokens, advantages, backend=backend, **given_)
        (3 * loss).backward()
        results[backend] = (loss.detach(), metrics.clipped, metrics.logprobs, leaf.grad)
    for got, want in zip(results["triton"][:3], results["torch"][:3], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, check_dtype=False)
    # Rounded to bfloat16 twice, before and after the factor 3.
    torch.testing.assert_close(results["triton"][3], results["torch"][3], rtol=2**-5, atol=1e-6)


GOOD = {"logits": torch.zeros(3, 8, device=DEVICE), "tokens": torch.zeros(3, dtype=torch.int64, device=DEVICE),
        "temperature": 1.0, "columns": 8}


@pytest.mark.parametrize(("change", "message"), [
    ({"logits": torch.zeros(3, 8, dtype=torch.float64, device=DEVICE)}, "float32, bfloat16 or float16"),
    ({"logits": torch.zeros(24, device=DEVICE)}, "logits must be"),
    ({"tokens": torch.zeros(2, dtype=torch.int64, device=DEVICE)}, "tokens must be"),
    ({"tokens": torch.zeros(3, dtype=torch.int32, device=DEVICE)}, "tokens must be"),
    ({"temperature": 0.0}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"columns": 9}, "columns"),
    ({"columns": -1}, "columns"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input(change: dict[str, Any], message: str) -> None:
    of = {**GOOD, **change}
    with pytest.raises(ValueError, match=message):
        ops.logprob_statistics(**of)
    ones = torch.ones(3, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        ops.policy_loss_rows(of["logits"], of["tokens"], ones, ones, None, None, None,
                             *options(of["columns"], temperature=of["temperature"]).values(), True)


def test_bad_rows() -> None:
    logits, tokens = make(3, 8)
    ones = torch.ones(3, device=DEVICE)
    for rows, message in (((ones[:2], ones), "advantages"), ((ones, ones.double()), "weights")):
        with pytest.raises(ValueError, match=message):
            ops.policy_loss_rows(logits, tokens, *rows, None, None, None, *options(8).values(), True)
    with pytest.raises(ValueError, match="kl must be"):
        ops.policy_loss_rows(logits, tokens, ones, ones, None, ones, None, *options(8, kl=0).values(), True)
    with pytest.raises(ValueError, match="grad must be"):
        ops.logprob_statistics_backward(ones, torch.ones(3, 4, device=DEVICE), logits, tokens, 1.0, 8)
    with pytest.raises(ValueError, match="scale must be"):
        ops.scale_rows_(logits, ones[:2])
    with pytest.raises(ValueError, match="unit column stride"):
        ops.scale_rows_(logits.T, torch.ones(8, device=DEVICE))


def test_nothing_to_do() -> None:
    for rows, width in ((0, 8), (0, 0), (3, 0)):
        logits, tokens = torch.zeros(rows, width, device=DEVICE), torch.zeros(rows, dtype=torch.int64, device=DEVICE)
        statistics_ = ops.logprob_statistics(logits, tokens, 1.0, width)
        assert statistics_.tolist() == [[-math.inf, 0, 0, 0]] * rows or width
        assert ops.logprob_statistics_backward(statistics_, statistics_, logits, tokens, 1.0, width).shape == (rows,
                                                                                                               width)
        ops.scale_rows_(logits, torch.rand(rows, device=DEVICE))
        zeros = torch.zeros(rows, device=DEVICE)
        loss, _, grad = ops.policy_loss_rows(logits, tokens, zeros, zeros, None, None, None, *options(width).values(),
                                             True)
        assert not loss.any() and grad.shape == (rows, width)


# group_advantage


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("with_valid", [False, True])
def test_group_advantage(dtype: torch.dtype, scale: Any, unbiased: bool, with_valid: bool) -> None:
    lengths = torch.tensor([3, 0, 1, 300, 5, 2, 128])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(DEVICE)
    rewards = torch.randn(int(lengths.sum()), dtype=torch.float64)
    rewards[2], rewards[309], rewards[304:309] = math.nan, math.inf, 0.1
    rewards = rewards.to(dtype).to(DEVICE)
    valid = torch.rand(len(rewards), device=DEVICE) > 0.2 if with_valid else None
    got, counts = triton_advantage.group_advantage(rewards, offsets, scale == "std", 1e-6, unbiased, valid)
    want = group_advantage(rewards, offsets, scale=scale, unbiased=unbiased, valid=valid, backend="torch")
    assert got.dtype == want.dtype and not got[304:309].any()
    torch.testing.assert_close(got, want, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=1e-12)
    usable = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    usable_in = [int((usable & rewards.isfinite())[a:b].sum()) for a, b in itertools.pairwise(offsets.tolist())]
    few = sum(count < 2 for count, length in zip(usable_in, lengths.tolist(), strict=True) if length)
    assert counts.tolist() == [int((usable & ~rewards.isfinite()).sum()), few]


def test_group_advantage_traps() -> None:
    """Equal rewards whose mean is not exactly theirs, over a tiny eps; a large common offset; no group at all."""
    equal = torch.full((7,), 0.1, device=DEVICE)
    assert ((equal - equal.sum() / 7) / (equal.std() + 1e-9)).abs().max() > 0.1
    ends = torch.tensor([0, 7], device=DEVICE)
    assert not triton_advantage.group_advantage(equal, ends, True, 1e-300, False, None)[0].any()
    offset = torch.tensor([2**20 + 0.5, 2**20, 2**20 + 0.25], dtype=torch.float32, device=DEVICE)
    # E[x^2] - E[x]^2 has no digit left here.
    assert abs(float(offset.square().mean() - offset.mean() ** 2) - float(offset.double().var(correction=0))) > 1e-2
    got, _ = triton_advantage.group_advantage(offset, torch.tensor([0, 3], device=DEVICE), True, 1e-6, False, None)
    exact = offset.double()
    close(got, (exact - exact.mean()) / (exact.std(correction=0) + 1e-6))
    nothing = torch.zeros(0, device=DEVICE)
    advantages, counts = triton_advantage.group_advantage(nothing, ends[:1], True, 1e-6, False, None)
    assert advantages.shape == (0,) and counts.tolist() == [0, 0]
