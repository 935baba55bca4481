"""Every option of the policy loss against the formulas written out token by token in fp64; what must hold of all."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import naive
import pytest
import torch
from backends import COMPILED
from srpo_kernels import PolicyLossConfig, group_advantage, grpo_loss, policy_loss, reference
from torch import Tensor

CU_SEQLENS = [0, 5, 5, 9, 12, 20]  # ragged, one empty
ROWS, WIDTH = 20, 31


def batch(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The same arguments of policy_loss every time: off-policy enough to clip, one sequence masked throughout."""
    torch.manual_seed(0)
    logits = (torch.randn(ROWS, WIDTH, dtype=torch.float64) * 2).to(dtype)
    tokens = torch.randint(0, WIDTH, (ROWS,))
    logprobs, _ = naive.logprobs(logits, tokens)
    mask = torch.rand(ROWS) > 0.2
    mask[9:12] = False
    return {
        "logits": logits, "tokens": tokens, "advantages": torch.randn(len(CU_SEQLENS) - 1, dtype=torch.float64),
        "old_logprobs": logprobs + torch.randn(ROWS) * 0.5, "ref_logprobs": logprobs + torch.randn(ROWS) * 0.3,
        "rollout_logprobs": logprobs + torch.randn(ROWS) * 0.4, "mask": mask, "cu_seqlens": torch.tensor(CU_SEQLENS),
    }


def gradient(arguments: dict[str, Any], function: Any = policy_loss, **options: Any) -> tuple[Tensor, Tensor, Any]:
    logits = arguments["logits"].detach().clone().requires_grad_()
    loss, metrics = function(**{**arguments, "logits": logits}, **options)
    loss.backward()
    return loss.detach(), logits.grad, metrics


def oracle(arguments: dict[str, Any], config: PolicyLossConfig) -> tuple[Tensor, Tensor, dict[str, float]]:
    logits = arguments["logits"].detach().double().requires_grad_()
    a = arguments
    advantages = a["advantages"]
    if len(advantages) != len(logits):
        advantages = advantages.repeat_interleave(torch.tensor(CU_SEQLENS).diff())
    loss, sums = naive.policy_loss(logits, a["tokens"], advantages, CU_SEQLENS, config, a["old_logprobs"],
                                   a["ref_logprobs"], a["rollout_logprobs"], a["mask"])
    loss.backward()
    return loss.detach(), logits.grad, sums


GRID = [
    PolicyLossConfig(objective=objective, ratio=ratio, aggregate=aggregate, constant_length=9,
                     dual_clip=1.4 if dual else None, kl=kl, kl_coef=0.3 if kl else 0.0)
    for objective, ratio, aggregate, dual, kl in itertools.product(
        ("clip", "cispo"), ("token", "sequence"), ("token", "sequence", "constant"), (False, True),
        (None, "k1", "k2", "k3"))
    if not (objective == "cispo" and (dual or ratio == "sequence"))
]
SINGLES = [PolicyLossConfig(entropy_coef=0.2), PolicyLossConfig(temperature=0.7, entropy_coef=-0.1),
           PolicyLossConfig(tis_cap=1.1), PolicyLossConfig(clip_low=1.0, objective="cispo", tis_cap=1.5),
           PolicyLossConfig(clip_low=0.05, clip_high=0.05, dual_clip=1.01, aggregate="sequence", entropy_coef=0.1)]


@pytest.mark.parametrize("config", GRID + SINGLES, ids=str)
def test_matches_the_formulas(config: PolicyLossConfig) -> None:
    arguments = batch()
    want, want_grad, sums = oracle(arguments, config)
    loss, grad, metrics = gradient(arguments, config=config)
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, want_grad, rtol=1e-12, atol=1e-13)
    for name, value in sums.items():
        assert float(getattr(metrics, name)) == pytest.approx(value, rel=1e-12, abs=1e-12), name


def test_sequence_cispo() -> None:
    config = PolicyLossConfig(objective="cispo", ratio="sequence", clip_low=0.05, clip_high=0.05)
    arguments = batch()
    want, want_grad, _ = oracle(arguments, config)
    loss, grad, _ = gradient(arguments, config=config)
    torch.testing.assert_close((loss, grad), (want, want_grad), rtol=1e-12, atol=1e-13)


def test_the_grid_clips_and_not() -> None:
    """The comparison above would prove little if nothing or everything were clipped."""
    clipped = [oracle(batch(), config)[2]["clipped"] for config in GRID]
    tokens = int(batch()["mask"].sum())
    assert min(clipped) >= 1 and max(clipped) < tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [policy_loss, reference.policy_loss], ids=[COMPILED[0], "torch"])
def test_narrow_types(function: Any, dtype: torch.dtype) -> None:
    config = PolicyLossConfig(kl="k3", kl_coef=0.1, entropy_coef=0.05, tis_cap=1.3)
    arguments = batch(dtype)
    want, want_grad, _ = oracle(arguments, config)
    loss, grad, _ = gradient(arguments, function, config=config)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)
    bound = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(grad.double(), want_grad, rtol=bound, atol=bound * float(want_grad.abs().max()))


def test_gradcheck_where_the_loss_is_smooth() -> None:
    arguments = batch()
    arguments["old_logprobs"] = naive.logprobs(arguments["logits"], arguments["tokens"])[0] + 0.01
    config = PolicyLossConfig(kl="k3", kl_coef=0.5, entropy_coef=0.1, aggregate="sequence")
    del arguments["rollout_logprobs"]
    logits = arguments.pop("logits").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, config=config, **arguments)[0], (logits,))


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    """Without old log-probs: -A grad log p / tokens, nothing clipped; with A = 1 the gradient of the NLL."""
    arguments = batch()
    arguments["old_logprobs"] = None
    loss, grad, metrics = gradient(arguments)
    logits = arguments["logits"].detach().requires_grad_()
    logprobs, _ = naive.logprobs(logits, arguments["tokens"])
    per_token = arguments["advantages"].repeat_interleave(arguments["cu_seqlens"].diff()) * arguments["mask"]
    (-(per_token * logprobs).sum() / arguments["mask"].sum()).backward()
    torch.testing.assert_close(grad, logits.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss, -per_token.sum() / arguments["mask"].sum())
    assert metrics.clipped == 0


def test_metrics_of_each_token() -> None:
    arguments = batch(torch.float32)
    _, _, metrics = gradient(arguments)
    logprobs, entropy = naive.logprobs(arguments["logits"], arguments["tokens"])
    keep = arguments["mask"]
    for got, want in ((metrics.logprobs, logprobs), (metrics.entropy, entropy),
                      (metrics.rollout_diff, (logprobs - arguments["rollout_logprobs"]).abs())):
        torch.testing.assert_close(got.double(), want * keep, rtol=1e-5, atol=2e-6)
        assert not got.requires_grad
    assert gradient({**arguments, "rollout_logprobs": None})[2].rollout_diff is None
    assert metrics.tokens == keep.sum()


SPLITS = [PolicyLossConfig(), PolicyLossConfig(aggregate="sequence", ratio="sequence"),
          PolicyLossConfig(aggregate="constant", constant_length=16, kl="k2", kl_coef=0.1, entropy_coef=0.1)]


@pytest.mark.parametrize("config", SPLITS, ids=lambda c: c.aggregate)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_add_up(config: PolicyLossConfig, as_tensor: bool) -> None:
    arguments = batch()
    mask, sequences = arguments["mask"], 3  # of five, one is empty and one masked
    normalizer = {"token": int(mask.sum()), "sequence": sequences, "constant": sequences * 16}[config.aggregate]
    loss, grad, _ = gradient(arguments, config=config)
    total, parts = torch.zeros(()), []
    for first, last in ((0, 1), (1, 3), (3, 4), (4, 5)):
        rows = slice(CU_SEQLENS[first], CU_SEQLENS[last])
        part = {k: v[rows] if len(v) == ROWS else v for k, v in arguments.items()}
        part["advantages"] = arguments["advantages"][first:last]
        part["cu_seqlens"] = arguments["cu_seqlens"][first : last + 1] - CU_SEQLENS[first]
        given = torch.tensor(float(normalizer)) if as_tensor else normalizer
        part_loss, part_grad, _ = gradient(part, config=config, normalizer=given)
        total, parts = total + part_loss, [*parts, part_grad]
    torch.testing.assert_close(total, loss, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.cat(parts), grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("function", [policy_loss, reference.policy_loss], ids=[COMPILED[0], "torch"])
@pytest.mark.parametrize("config", [
    PolicyLossConfig(kl="k3", kl_coef=0.1, entropy_coef=0.1, tis_cap=2.0),
    PolicyLossConfig(aggregate="sequence", ratio="sequence"), PolicyLossConfig(objective="cispo"),
], ids=["token", "sequence", "cispo"])
def test_masked_rows_may_hold_anything(function: Any, config: PolicyLossConfig) -> None:
    arguments = batch(torch.float32)
    clean_loss, clean_grad, clean_metrics = gradient(arguments, function, config=config)
    off = ~arguments["mask"]
    poisoned = {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(ROWS)[: int(off.sum())]
    poisoned["logits"][off] = bad[:, None].float()
    poisoned["tokens"][off] = -100
    poisoned["advantages"] = arguments["advantages"].repeat_interleave(arguments["cu_seqlens"].diff())
    for name in ("advantages", "old_logprobs", "ref_logprobs", "rollout_logprobs"):
        poisoned[name][off] = bad.to(poisoned[name].dtype)
    loss, grad, metrics = gradient(poisoned, function, config=config)
    assert torch.equal(loss, clean_loss) and torch.equal(grad, clean_grad)
    assert (grad[off] == 0).all() and grad[~off].abs().sum() > 0
    for field in dataclasses.fields(metrics):
        assert torch.equal(getattr(metrics, field.name), getattr(clean_metrics, field.name)), field.name


@pytest.mark.parametrize("masked", [True, False], ids=["all masked", "no rows"])
@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_nothing_to_learn_from(masked: bool, aggregate: Any) -> None:
    rows = 4 if masked else 0
    arguments = {"logits": torch.randn(rows, 7), "tokens": torch.zeros(rows, dtype=torch.int64),
                 "advantages": torch.ones(1), "mask": torch.zeros(rows, dtype=torch.bool),
                 "cu_seqlens": torch.tensor([0, rows])}
    loss, grad, metrics = gradient(arguments, config=PolicyLossConfig(aggregate=aggregate, constant_length=4))
    assert loss == 0 and (grad == 0).all() and metrics.tokens == 0


@pytest.mark.parametrize("shift", [-200.0, 200.0])
@pytest.mark.parametrize("config", [PolicyLossConfig(), PolicyLossConfig(dual_clip=3.0),
                                    PolicyLossConfig(objective="cispo"), PolicyLossConfig(ratio="sequence"),
                                    PolicyLossConfig(kl="k3", kl_coef=1.0), PolicyLossConfig(tis_cap=2.0)], ids=str)
def test_wild_ratios_stay_finite(config: PolicyLossConfig, shift: float) -> None:
    """exp(200) is infinite in fp32, and 0 * inf in a clipped token's gradient would be NaN."""
    arguments = batch(torch.float32)
    for name in ("old_logprobs", "ref_logprobs", "rollout_logprobs"):
        arguments[name] = arguments[name] + shift
    loss, grad, metrics = gradient(arguments, config=config)
    assert loss.isfinite() and grad.isfinite().all() and metrics.kl.isfinite()


def test_k3_of_close_policies() -> None:
    """exp(d) - 1 - d is exactly 0 in fp32 for |d| < 3e-4, and its autograd gradient mostly rounding."""
    logits, tokens = torch.randn(64, 40), torch.randint(0, 40, (64,))
    current = reference.token_logprobs(logits, tokens)
    ref = current + torch.linspace(-2e-4, 2e-4, 64)
    config = PolicyLossConfig(kl="k3", kl_coef=1.0)
    arguments = {"logits": logits, "tokens": tokens, "advantages": torch.zeros(64), "ref_logprobs": ref}
    _, grad, metrics = gradient(arguments, reference.policy_loss, config=config)
    d = (ref - current).double()
    torch.testing.assert_close(metrics.kl.double(), (torch.expm1(d) - d).sum(), rtol=1e-4, atol=0)
    exact = logits.double().requires_grad_()
    naive.logprobs(exact, tokens)[0].backward(-torch.expm1(d) / 64)
    torch.testing.assert_close(grad.double(), exact.grad, rtol=1e-5, atol=1e-12)


def test_zero_advantage_rows_have_exactly_zero_gradient() -> None:
    arguments = batch(torch.float32)
    arguments["advantages"][0] = 0
    _, grad, _ = gradient(arguments)
    assert (grad[:5] == 0).all() and grad[5:].abs().sum() > 0


def test_one_length_advantages_are_the_same_a_token_or_a_sequence() -> None:
    arguments = batch()
    per_token = {**arguments, "advantages": arguments["advantages"].repeat_interleave(arguments["cu_seqlens"].diff())}
    assert torch.equal(gradient(arguments)[1], gradient(per_token)[1])


def test_grpo_loss_is_both_in_one() -> None:
    arguments = batch()
    rewards, offsets = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0]), torch.tensor([0, 3, 5])
    config = PolicyLossConfig(aggregate="sequence")
    advantages = group_advantage(rewards, offsets, scale="none")
    want = gradient({**arguments, "advantages": advantages}, config=config)
    del arguments["advantages"]
    got = gradient(arguments, grpo_loss, rewards=rewards, group_offsets=offsets, scale="none", config=config)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    with pytest.raises(ValueError, match=r"cu_seqlens must be \[5\] for 4 rewards"):
        grpo_loss(rewards=rewards[:4], group_offsets=torch.tensor([0, 4]), **arguments)


def test_repeats_exactly() -> None:
    arguments = batch(torch.bfloat16)
    first, second = (gradient(arguments, config=PolicyLossConfig(ratio="sequence")) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize(("options", "message"), [
    ({"objective": "ppo"}, "objective must be one of"), ({"ratio": "word"}, "ratio must be one of"),
    ({"aggregate": "mean"}, "aggregate must be one of"), ({"kl": "k4"}, "kl must be one of"),
    ({"clip_low": -0.1}, "clip_low"), ({"clip_high": float("nan")}, "clip_high"), ({"temperature": 0.0}, "temperature"),
    ({"dual_clip": 1.0}, "dual_clip must be above 1"), ({"kl_coef": 0.1}, "choose k1, k2 or k3"),
    ({"dual_clip": 3.0, "objective": "cispo"}, "leave dual_clip unset"), ({"tis_cap": 0.0}, "tis_cap"),
    ({"constant_length": 0}, "constant_length"), ({"entropy_coef": float("nan")}, "entropy_coef must be finite"),
    ({"temperature": float("inf")}, "temperature must be finite"),
])
def test_impossible_configurations(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyLossConfig(**options)


@pytest.mark.parametrize(("change", "config", "message"), [
    ({"old_logprobs": torch.zeros(3)}, {}, r"old_logprobs must be \[20\]"),
    ({"advantages": torch.zeros(3)}, {}, r"advantages must be \[20\], one a token, or \[5\]"),
    ({"advantages": torch.zeros(3), "cu_seqlens": None}, {}, "or one a sequence with cu_seqlens"),
    ({"mask": torch.ones(20)}, {}, "mask must be"),
    ({"cu_seqlens": torch.tensor([0, 1, 2, 3, 4, 19])}, {}, "cu_seqlens must run from 0 to the 20 tokens"),
    ({"cu_seqlens": None, "advantages": torch.zeros(20)}, {"ratio": "sequence"}, "needs cu_seqlens"),
    ({"cu_seqlens": None, "advantages": torch.zeros(20)}, {"aggregate": "sequence"}, "needs cu_seqlens"),
    ({"cu_seqlens": None, "advantages": torch.zeros(20)}, {"aggregate": "constant"}, "needs cu_seqlens"),
    ({}, {"aggregate": "constant"}, "needs config.constant_length"),
    ({"ref_logprobs": None}, {"kl": "k3"}, "needs ref_logprobs"),
    ({"rollout_logprobs": None}, {"tis_cap": 2.0}, "needs rollout_logprobs"),
    ({"normalizer": 0}, {}, "normalizer must be positive"),
    ({"normalizer": torch.ones(1)}, {}, "normalizer must be a number or a 0-dim tensor"),
    ({"cu_seqlens": torch.tensor([[0, 20]])}, {}, r"cu_seqlens must be \[S \+ 1\] integers"),
    ({"cu_seqlens": torch.tensor([0.0, 20.0])}, {}, r"cu_seqlens must be \[S \+ 1\] integers"),
])
def test_bad_input(change: dict[str, Any], config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_loss(**{**batch(), **change}, config=PolicyLossConfig(**config))
