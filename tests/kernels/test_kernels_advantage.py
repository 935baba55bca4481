"""group_advantage against the textbook formula, and the rewards on which the textbook formula fails."""

from __future__ import annotations

import logging
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from srpo_kernels import group_advantage


def offsets(*sizes: int) -> torch.Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def textbook(group: list[float], scale: str, eps: float, unbiased: bool) -> list[float]:
    if len(group) < 2 or max(group) == min(group):
        return [0.0] * len(group)
    mean = statistics.fmean(group)
    deviation = statistics.stdev(group) if unbiased else statistics.pstdev(group)
    return [(x - mean) / (deviation + eps if scale == "std" else 1) for x in group]


reward = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-100, 100, width=32))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.lists(reward, max_size=9), min_size=1, max_size=6), st.sampled_from(["std", "none"]), st.booleans(),
       st.data())
def test_matches_the_textbook(groups: list[list[float]], scale: str, unbiased: bool, data: st.DataObject) -> None:
    flat = [x for group in groups for x in group]
    valid = data.draw(st.none() | st.lists(st.booleans(), min_size=len(flat), max_size=len(flat)))
    keep = iter(valid or [True] * len(flat))
    want: list[float] = []
    for group in groups:
        kept = [next(keep) for _ in group]
        values = iter(textbook([x for x, k in zip(group, kept, strict=True) if k], scale, 1e-4, unbiased))
        want += [next(values) if k else 0.0 for k in kept]
    got = group_advantage(torch.tensor(flat, dtype=torch.float64), offsets(*map(len, groups)), scale=scale, eps=1e-4,
                          unbiased=unbiased, valid=None if valid is None else torch.tensor(valid, dtype=torch.bool))
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [0.1, 0.7, 1e-3, -1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("size", [2, 3, 7, 31])
def test_equal_rewards_give_exactly_zero(value: float, size: int) -> None:
    rewards = torch.full((size,), value)
    assert (group_advantage(rewards, offsets(size), eps=1e-12) == 0).all()


def test_equal_rewards_would_not_be_zero_without_care() -> None:
    rewards = torch.full((7,), 0.1)
    centred = rewards - rewards.sum() / 7
    assert (centred / (centred.square().mean().sqrt() + 1e-12)).abs().max() > 0.1


def test_large_common_offset() -> None:
    """E[x^2] - E[x]^2 of these in fp32 is noise, and may be negative."""
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.0]) + 2.0**20
    assert group_advantage(rewards, offsets(4), eps=0.0).tolist() == [-1.0, 1.0, 1.0, -1.0]
    assert (rewards.square().mean() - rewards.mean().square() - 0.25).abs() > 0.1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_bad_reward_is_left_out_and_reported(bad: float, caplog: pytest.LogCaptureFixture) -> None:
    rewards = torch.tensor([1.0, bad, 0.0, 1.0, 0.0])
    with caplog.at_level(logging.WARNING):
        got = group_advantage(rewards, offsets(3, 2), eps=0.0)
    assert got.tolist() == [1.0, 0.0, -1.0, 1.0, -1.0]
    assert "1 rewards are NaN or infinite" in caplog.text and "[1]" in caplog.text


def test_bad_reward_that_is_not_valid_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    valid = torch.tensor([True, False, True])
    assert group_advantage(torch.tensor([1.0, torch.nan, 0.0]), offsets(3), valid=valid).isfinite().all()
    assert not caplog.text


def test_single_valid_sample_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    rewards, valid = torch.tensor([1.0, 5.0, 0.0, 1.0, 0.0]), torch.tensor([True, True, False, True, True])
    with caplog.at_level(logging.WARNING):
        got = group_advantage(rewards, offsets(1, 2, 0, 2), eps=0.0, unbiased=True, valid=valid)
    assert got[:3].tolist() == [0.0, 0.0, 0.0] and got[3] > 0
    assert "2 of 4 groups have fewer than two valid samples" in caplog.text


def test_types() -> None:
    assert group_advantage(torch.tensor([0.0, 1.0]).bfloat16(), offsets(2)).dtype == torch.float32
    assert group_advantage(torch.tensor([0.0, 1.0]).double(), offsets(2).int()).dtype == torch.float64
    assert not group_advantage(torch.tensor([0.0, 1.0], requires_grad=True), offsets(2)).requires_grad


@pytest.mark.parametrize("bad", [[0, 2], [1, 3], [0, 2, 1, 3], []])
def test_offsets_must_cover_the_rewards(bad: list[int]) -> None:
    with pytest.raises(ValueError, match="group_offsets must rise from 0 to the 3 rewards"):
        group_advantage(torch.zeros(3), torch.tensor(bad))


def test_unknown_scale() -> None:
    with pytest.raises(ValueError, match="scale must be"):
        group_advantage(torch.zeros(3), offsets(3), scale="mean")  # type: ignore[arg-type]


def test_operator_registration() -> None:
    rewards, borders = torch.tensor([0.0, 1.0, 2.0]), offsets(3)
    torch.library.opcheck(torch.ops.srpo_kernels.group_advantage.default,
                          (rewards, borders, True, 1e-6, False, None, "torch"))
