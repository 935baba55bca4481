"""Replays of generation: by hand where they are small, and what balance and over-sampling do on a long tail."""

import random
from dataclasses import replace

import pytest
from jobs import config

from srpo.plan.simulate import (
    Decoder,
    Group,
    balanced,
    dealt,
    ends,
    likely_last,
    makespan,
    over_sampled,
    pace,
    replay,
    requests,
)
from srpo.plan.workload import synthetic

PLAIN = Decoder(weights=1.0, product=0.0, sequence=0.0, cached=0.0, overhead=0.0, prefill=0.0, slots=100, capacity=1e9)
"""A second a step, whatever is in it."""
LOADED = replace(PLAIN, weights=0.01, sequence=1e-5, cached=1e-8, slots=64)


def groups(count: int, samples: int = 4) -> list[Group]:
    rng = random.Random(0)
    made = []
    for _ in range(count):
        mean = rng.lognormvariate(6, 0.7)
        lengths = tuple(max(1, round(mean * rng.lognormvariate(0, 0.7))) for _ in range(samples))
        made.append(Group(50, lengths, mean))
    return made


def finished(decoder, pairs):
    return [end for _, end in replay(decoder, pairs)]


def test_every_sequence_gets_a_token_a_step():
    assert finished(PLAIN, [(0, 3), (0, 1), (0, 2)]) == [3, 1, 2]


def test_a_slot_goes_to_the_next_request():
    assert replay(replace(PLAIN, slots=1), [(0, 3), (0, 2)]) == [(0, 3), (3, 5)]


def test_a_sequence_waits_until_the_cache_holds_all_of_it():
    assert replay(replace(PLAIN, capacity=10), [(2, 5), (2, 3), (1, 1)]) == [(0, 5), (5, 8), (5, 6)]
    assert finished(replace(PLAIN, capacity=3), [(2, 5)]) == [5]  # one alone is never refused: srpo plan says so first


def test_time_grows_with_what_is_cached_and_with_sequences():
    cached = replace(PLAIN, cached=1.0)
    assert finished(cached, [(10, 3)]) == [3 + 10 + 11 + 12]
    assert finished(replace(PLAIN, sequence=0.5), [(0, 1), (0, 1)]) == [2, 2]
    assert finished(replace(PLAIN, product=0.75), [(0, 1), (0, 1)]) == [1.5, 1.5]  # weights are read meanwhile
    assert finished(replace(PLAIN, prefill=0.1), [(10, 1)]) == [2]


def test_a_group_computes_its_prompt_once_and_what_it_had_begun_again():
    assert requests([Group(7, (2, 3), 2.5)]) == [(7, 2), (0, 3)]
    assert requests([Group(7, (2, 3), 2.5, begun=(4, 5))]) == [(11, 2), (5, 3)]


@pytest.mark.parametrize("replicas", [8, 64])
def test_balance_beats_chance_on_a_long_tail(replicas):
    step = synthetic(config(), 256)
    chance = [makespan(LOADED, dealt(step, replicas, seed)) for seed in range(5)]
    shares = balanced(step, replicas)
    assert sorted(id(g) for share in shares for g in share) == sorted(map(id, step))
    assert makespan(LOADED, shares) < min(chance)


def test_over_sampling_loses_no_token():
    steps = [groups(16) for _ in range(8)]
    alone = [(max(max(g.lengths) for g in step), sum(g.tokens for g in step)) for step in steps]
    assert over_sampled(PLAIN, steps, 1, 1.0) == alone  # a second a token, nobody waits: as long as the longest
    done = over_sampled(PLAIN, steps, 1, 1.5)
    begun = 24 + 16 * (len(done) - 1)
    fed = [g for step in steps for g in step][:begun]
    assert 0.8 * sum(g.tokens for g in fed) < sum(made for _, made in done) < sum(g.tokens for g in fed)
    assert pace(done, 1.0) < pace(alone, 1.0)


def test_over_sampling_goes_on_from_where_a_response_was():
    slow, quick = Group(0, (10,), 10.0), Group(0, (4,), 4.0)
    # One group of two in flight is needed: the quick one ends the first step after 4, the slow one has 6 left.
    assert over_sampled(PLAIN, [[quick], [slow], [Group(0, (20,), 20.0)]], 1, 2.0) == [(4, 8), (6, 12)]


def test_replicas_end_when_their_last_response_does():
    shares = [[Group(0, (3, 5), 4.0)], [Group(0, (2, 2), 2.0)], []]
    assert ends(PLAIN, shares) == [5, 2, 0]


@pytest.mark.parametrize("replicas", [1, 8, 64])
def test_one_of_two_replicas_ends_last_or_nearly(replicas):
    shares = balanced(groups(256), replicas)
    assert makespan(LOADED, likely_last(shares)) == pytest.approx(makespan(LOADED, shares), rel=0.01)
    assert makespan(LOADED, likely_last([*shares, []])) == makespan(LOADED, likely_last(shares))
