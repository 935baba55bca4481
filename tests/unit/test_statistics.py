"""Advantages, sums over micro-batches and ranks, and the canary's message."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from srpo_kernels import linear_policy_loss

from srpo.batch import Sample, pack
from srpo.config import Algorithm
from srpo.data.schema import Problem
from srpo.errors import Fault, UserError
from srpo.rewards.compose import BROKEN, Graded
from srpo.statistics import (
    Update,
    advantages,
    average_at_k,
    by_prompt,
    check_canary,
    check_graders,
    names_of,
    of_all_replicas,
    step_metrics,
    update_statistics,
)

TIMES = {"time/rollout": 2.0, "time/reward": 1.0, "time/update": 4.0, "time/sync": 0.0, "time/step": 7.0}


def grades(*rewards: float | None) -> list[Graded]:
    """None: the grader failed."""
    return [Graded(0.0, r or 0.0, {}, "", failed=r is None) for r in rewards]


def test_advantages_by_group():
    got = advantages(grades(1.0, 0.0, 1.0, 1.0), [False] * 4, 2, Algorithm())
    assert got[:2] == pytest.approx([1.0, -1.0], abs=1e-4) and got[2:] == [0.0, 0.0]
    assert advantages(grades(1.0, 0.0), [False] * 2, 2, Algorithm(advantage="none")) == [0.5, -0.5]


def test_truncated_responses():
    """A response cut off gets zero advantage by the recipe, and still counts in its group's mean."""
    assert advantages(grades(1.0, 0.0), [False, True], 2, Algorithm(advantage="none")) == [0.5, 0.0]
    assert advantages(grades(1.0, 0.0), [False, True], 2, Algorithm(advantage="none", truncated="keep")) == [0.5, -0.5]


def test_what_could_not_be_graded_is_no_part_of_its_group():
    """Neither are three right ones better than it, nor is it better than three with a penalty for their length."""
    assert advantages(grades(1.1, 1.1, 1.1, None), [False] * 4, 4, Algorithm()) == [0.0] * 4
    centred = Algorithm(advantage="none")
    assert advantages(grades(-1.0, -0.5, None, -1.5), [False] * 4, 4, centred) == [0.0, 0.5, 0.0, -0.5]


def update(error: float = 0.0, where: int = 3, stale: int = 0) -> tuple[Update, list[Sample]]:
    """Statistics of a real loss over four samples in three micro-batches; `error` is added to one rollout log-prob, of
    the response of which `stale` tokens are of an earlier step."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 8), torch.randn(11, 8)
    made = [Sample(np.array([1, 2]), np.array([3, 4, 5 + i]), stale=stale * (i == where)) for i in range(4)]
    parts = []
    for batch in pack(made, [1.0, -1.0, 0.5, 0.0], range(4), sequences=2, rank=0, ranks=1):
        args = (hidden[batch.rows], weight, batch.targets, batch.advantages)
        _, exact = linear_policy_loss(*args, mask=batch.mask, cu_seqlens=batch.cu_rows)
        batch.rollout_logprobs = exact.logprobs.clone()
        for place, i in enumerate(batch.sample_index.tolist()):
            if i == where:
                batch.rollout_logprobs[int(batch.cu_rows[place]) + 1] += error
        _, metrics = linear_policy_loss(*args, mask=batch.mask, cu_seqlens=batch.cu_rows,
                                        rollout_logprobs=batch.rollout_logprobs)
        parts.append(update_statistics([metrics], [batch]))
    return Update.merge(parts), made


def test_update_adds_up():
    total, made = update()
    assert total.tokens == 12 and total.processed == 16 and total.diffs == {i: (3, 0.0, 0.0) for i in range(4)}
    assert total.entropy > 0 and total.policy_loss == pytest.approx(-3 * (1.0 - 1.0 + 0.5), abs=1e-5)
    assert Update.merge([Update(grad_norm=2.0), Update(grad_norm=0.0)]).grad_norm == 0, "the last update's"


@pytest.mark.parametrize("where", range(4))
def test_canary_names_step_and_prompt(where: int):
    """A token of one response is off by 0.25: 0.25 / 6 on average over its prompt's two responses of three tokens."""
    total, _ = update(error=0.25, where=where)
    assert total.diffs[where] == (3, pytest.approx(0.25, abs=1e-6), pytest.approx(0.25, abs=1e-6))
    assert by_prompt(total.diffs, 2)[where // 2] == (6, *total.diffs[where][1:])
    check_canary(total, 7, ["first", "second"], 2, threshold=0.042)
    name = ["first", "second"][where // 2]
    message = rf"step 7: prompt '{name}': .* of 6 sampled tokens differ by 0\.0417 on average, one by 0\.25;"
    with pytest.raises(UserError, match=message):
        check_canary(total, 7, ["first", "second"], 2, threshold=0.041)


@pytest.mark.parametrize("stale", [1, 2, 3])
def test_the_canary_does_not_look_at_tokens_of_earlier_steps(stale: int):
    """The second token of a response is off; it counts unless an older policy sampled it."""
    total, _ = update(error=0.25, where=2, stale=stale)
    assert sum(diff.tokens for diff in total.diffs.values()) == 12 - stale
    assert (2 in total.diffs) == (stale < 3)
    if stale < 3:
        assert total.diffs[2].largest == (pytest.approx(0.25, abs=1e-6) if stale < 2 else 0)
        assert total.diffs[2].total == total.diffs[2].largest
    assert total.tokens == 12


def test_a_masked_row_is_no_difference():
    batch = pack([Sample(np.array([1]), np.array([2]))], [0.0], range(1), sequences=1, rank=1, ranks=2)[0]
    _, metrics = linear_policy_loss(torch.ones(1, 2), torch.eye(2), batch.targets, batch.advantages, mask=batch.mask,
                                    rollout_logprobs=batch.rollout_logprobs, normalizer=1)
    assert update_statistics([metrics], [batch]).diffs == {}
    check_canary(Update(), 1, [], 2, threshold=1e-9)


def test_a_step_that_samples_nothing_compares_nothing():
    made = [Sample(np.array([1]), np.ones(2, np.int32), stale=2)]
    graded = [Graded(1.0, 1.0, {}, "", failed=False)]
    got = step_metrics([Problem("m", "math", "?", answer="1")], made, graded, [0.0], Update(tokens=2), TIMES)
    assert got["rollout/logprob_diff_mean"] is got["rollout/logprob_diff_max"] is None
    assert got["rollout/stale"] == 1.0 and got["rollout/tokens_per_s"] == 0


def test_canary_sees_nan():
    total, _ = update(error=float("nan"))
    with pytest.raises(UserError, match="differ by inf"):
        check_canary(total, 1, ["a", "b"], 2, threshold=1e9)


@pytest.mark.parametrize(("code", "stops"), [(BROKEN, True), (BROKEN - 1, False)])
def test_a_domain_that_cannot_be_graded_stops_the_run(code: int, stops: bool):
    """Whatever the others' grades; a few problems may be at fault themselves, and one grade shows that it works."""
    programs = [Problem(str(i), "code", "?", tests={}) for i in range(code)]
    problems = [Problem("m", "math", "?", answer="1"), *programs]
    graded = grades(1.0, 0.0, *[None] * (2 * code))
    check_graders(problems, [*graded[:-1], *grades(0.0)], 3)
    with pytest.raises(Fault, match=f"step 3: none of the {2 * code} responses to code") if stops else nullcontext():
        check_graders(problems, graded, 3)


def test_a_function_that_raises_is_no_fault_of_the_machine():
    """Which torchrun would start again, to meet it again."""
    problems = [Problem(str(i), "math", "?", answer="1") for i in range(BROKEN)]
    raised = Graded(0.0, 0.0, {}, "my:f: KeyError: 'x'", failed=True, mistaken=True)
    hung = Graded(0.0, 0.0, {}, "math: no answer within 10 s", failed=True)
    with pytest.raises(UserError) as error:
        check_graders(problems, [raised] * BROKEN, 3)
    assert not isinstance(error.value, Fault)
    assert str(error.value).endswith("my:f: KeyError: 'x'; nothing was recorded or updated")
    with pytest.raises(Fault, match="graded: math: no answer .* raise reward.timeout"):
        check_graders(problems, [hung, *[raised] * (BROKEN - 1)], 3)


def test_step_metrics():
    problems = [Problem("m", "math", "?", answer="1"), Problem("c", "code", "?", tests={})]
    made = [Sample(np.array([1]), np.ones(n, np.int32), truncated=n == 4) for n in (1, 2, 3, 4)]
    graded = [Graded(c, r, {}, "", failed=False) for c, r in ((1.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.1))]
    total, _ = update()
    advantage = [0.0, 0.0, -1.0, 1.0]
    got = step_metrics(problems, made, graded, advantage, total, TIMES)
    assert got["reward/mean"] == 0.525 and got["reward/math"] == 1.0 and got["reward/code"] == 0.05
    assert got["accuracy/math"] == 1.0 and got["accuracy/code"] == 0.0
    assert (got["length/mean"], got["length/math"], got["length/code"]) == (2.5, 1.5, 3.5)
    assert (got["groups/zero_advantage"], got["groups/all_correct"], got["groups/all_wrong"]) == (0.5, 0.5, 0.5)
    assert got["rollout/tokens_per_s"] == 5.0 and got["train/tokens_per_s"] == 4.0 and got["rollout/truncated"] == 0.25
    assert got["reward/std"] == pytest.approx(0.025), "0 in the first group, 0.05 in the second"
    left = [Sample(np.array([1]), np.ones(5, np.int32), stale=3, finished=False)]
    more = step_metrics(problems, made, graded, advantage, total, TIMES, left)
    assert more == got | {"rollout/tokens_per_s": 6.0}, "two tokens more, in two seconds"
    only = step_metrics(problems[:1], made[:2], graded[:2], advantage[:2], total, TIMES)
    assert "reward/code" not in only and "accuracy/code" not in only


def test_generation_lasts_until_the_slowest_replica_is_done():
    """A short step had nothing for rank 0: its tokens were over no time, and grading over all of it."""
    times = {"time/rollout": 0.5, "time/reward": 9.0, "time/update": 2.0}
    assert of_all_replicas(times, [0.5, 8.5, 3.0]) == {"time/rollout": 8.5, "time/reward": 1.0, "time/update": 2.0}
    assert of_all_replicas(times, [0.5, 0.25]) == times
    assert of_all_replicas(times, [0.5, 9.75])["time/reward"] == 0.0, "clocks began at moments of their own"


def test_parts_of_the_reward():
    made = [Sample(np.array([1]), np.array([2])) for _ in range(4)]
    parts = [{"accuracy": 1.0, "format": 0.1}, {"accuracy": 0.0, "format": 0.1, "mine:bonus": 2.0}, {}, {}]
    graded = [Graded(0.0, sum(p.values()), p, "", failed=not p) for p in parts]
    got = step_metrics([Problem("m", "math", "?", answer="1")], made, graded, [0.0] * 4, Update(tokens=1), TIMES)
    assert {k: v for k, v in got.items() if "parts" in k} == pytest.approx({
        "reward/parts/accuracy": 0.25, "reward/parts/format": 0.05, "reward/parts/mine:bonus": 0.5})


def test_average_at_k_by_domain_and_by_file():
    problems = [Problem("a", "math", "?", answer="1"), Problem("b", "math", "?", answer="1"),
                Problem("c", "code", "?", tests={})]
    graded = [Graded(c, 0.0, {}, "", failed=False) for c in (1.0, 0.0, 1.0, 1.0, 0.0, 0.0)]
    assert average_at_k(problems, graded, dict.fromkeys("abc", "all.jsonl")) == {"eval/math": 0.75, "eval/code": 0.0}
    files = {"a": "aime.jsonl", "b": "math500.jsonl", "c": "math500.jsonl"}
    assert average_at_k(problems, graded, files) == {
        "eval/math": 0.75, "eval/code": 0.0, "eval/aime.jsonl": 0.5, "eval/math500.jsonl": 0.5}


def test_files_of_one_name_are_told_apart():
    """As one they would have one score, or, where there are no others, none."""
    assert names_of(["a/test.parquet", "b/test.parquet", "c/aime.jsonl"]) == {
        "a/test.parquet": "a/test.parquet", "b/test.parquet": "b/test.parquet", "c/aime.jsonl": "aime.jsonl"}
