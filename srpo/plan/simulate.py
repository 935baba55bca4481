"""Replays a step's generation: how long R vLLM replicas take for responses of given lengths, whatever decides who
gets which prompt.

A replica decodes one token a sequence and step; a step's time grows with the sequences in it (products, sampling) and
with the tokens they have cached (`Decoder`). A sequence is admitted when a slot and KV cache for all of it are free:
vLLM admits earlier and preempts, which this does not model. Between two events nothing but the cached tokens changes,
so a replay costs one event a response.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import accumulate, pairwise
from statistics import fmean

from srpo.balance import assign
from srpo.control.ledger import Outcome

Span = tuple[float, float]
"""Seconds from the beginning of a step."""
StepDone = tuple[float, int]
"""Seconds of a step, and the tokens generated in it."""


@dataclass(frozen=True)
class Decoder:
    """Speed and room of one replica. Seconds of a step: the larger of reading the weights and multiplying with them,
    then the rest of the terms."""

    weights: float
    """Seconds to read the weights once."""
    product: float
    """Seconds of matrix products a sequence."""
    sequence: float
    """Seconds a sequence of what is not bound by weights: sampling, all-reduces."""
    cached: float
    """Seconds to read the KV cache of one token."""
    overhead: float
    """Seconds a step."""
    prefill: float
    """Seconds a prompt token."""
    slots: int
    """Sequences at once (rollout.max_sequences)."""
    capacity: float
    """Tokens that the KV cache holds."""

    def step(self, sequences: int, tokens: float) -> float:
        """Seconds of a decode step over `sequences` with `tokens` cached in all."""
        matrices = max(self.weights, sequences * self.product)
        return matrices + sequences * self.sequence + tokens * self.cached + self.overhead


@dataclass(frozen=True)
class Group:
    """The responses to one prompt. `expected`: their mean length as far as it is known beforehand."""

    prompt: int
    lengths: tuple[int, ...]
    expected: float
    correct: int = 0
    """How many are fully correct."""
    mixed: bool = False
    """Whether their correctness differs."""
    learns: bool = False
    """Whether their rewards differ: the others have no advantage."""
    begun: tuple[int, ...] = ()
    """Tokens that earlier steps left of each response, beyond which `lengths` count."""

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def outcome(self) -> Outcome:
        return Outcome(len(self.lengths), self.correct, self.mixed)


def replay(decoder: Decoder, requests: Sequence[tuple[int, int]]) -> list[Span]:
    """When each request, a pair of prompt and response tokens in the order of submission, is admitted and finished."""
    began, finished = [0.0] * len(requests), [0.0] * len(requests)
    queue = iter(enumerate(requests))
    waiting = next(queue, None)
    running: list[tuple[int, int]] = []  # (step at which it ends, request)
    now, step, cached, free = 0.0, 0, 0, decoder.capacity
    while running or waiting:
        while waiting and len(running) < decoder.slots:
            i, (prompt, response) = waiting
            if running and prompt + response > free:
                break
            heappush(running, (step + response, i))
            free -= prompt + response
            cached += prompt
            began[i] = now
            now += prompt * decoder.prefill
            waiting = next(queue, None)
        end, count = running[0][0], len(running)
        # The cache grows by one token a sequence and step: its mean over these steps stands for all.
        now += (end - step) * decoder.step(count, cached + count * (end - step - 1) / 2)
        cached += count * (end - step)
        step = end
        while running and running[0][0] == end:
            i = heappop(running)[1]
            finished[i] = now
            cached -= sum(requests[i])
            free += sum(requests[i])
    return list(zip(began, finished, strict=True))


def requests(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """Every response of the groups. A group's prompt is computed once: the others find it in the prefix cache."""
    return [((g.prompt if i == 0 else 0) + (g.begun[i] if g.begun else 0), n)
            for g in groups for i, n in enumerate(g.lengths)]


def dealt(groups: Sequence[Group], replicas: int, seed: int = 0) -> list[list[Group]]:
    """At random, in equal numbers."""
    order = list(groups)
    random.Random(seed).shuffle(order)
    return [order[r::replicas] for r in range(replicas)]


def balanced(groups: Sequence[Group], replicas: int) -> list[list[Group]]:
    """By expected length, as the trainer assigns prompts: replicas even, the longest first."""
    return [[groups[i] for i in share] for share in assign([g.expected * len(g.lengths) for g in groups], replicas)]


def foreseen(groups: Sequence[Group], replicas: int) -> list[list[Group]]:
    """The same if the lengths were known beforehand: what a better forecast could give."""
    return [[groups[i] for i in share] for share in assign([g.tokens for g in groups], replicas)]


def ends(decoder: Decoder, shares: Sequence[Sequence[Group]]) -> list[float]:
    """Seconds at which each replica is done."""
    return [max((end for _, end in replay(decoder, requests(share))), default=0.0) for share in shares]


def makespan(decoder: Decoder, shares: Sequence[Sequence[Group]]) -> float:
    """Seconds until the last response of the last replica."""
    return max(ends(decoder, shares))


def likely_last(shares: Sequence[Sequence[Group]]) -> list[Sequence[Group]]:
    """The replica that has the most tokens to generate and the one that has the longest response: one of them ends
    last, or hardly before the last."""
    busy = [share for share in shares if share]
    return [max(busy, key=lambda share: sum(g.tokens for g in share)),
            max(busy, key=lambda share: max(max(g.lengths) for g in share))]


def over_sampled(decoder: Decoder, steps: Sequence[Sequence[Group]], replicas: int, factor: float) -> list[StepDone]:
    """Steps under rollout.oversample = `factor`: so many times the groups that a step needs are in flight, a replica
    stops when its part of those needed is complete, and the others go on in the next step. There are more steps than
    `factor`, all of the same size."""
    need = len(steps[0])
    flight = math.ceil(need * factor)
    fresh = [g for step in steps for g in step]
    carried: list[Group] = []
    done = []
    while len(carried) + len(fresh) >= flight:
        taken = flight - len(carried)
        groups, fresh, carried = carried + fresh[:taken], fresh[taken:], []
        shares = balanced(groups, replicas)
        edges = [need * before // flight for before in accumulate(map(len, shares), initial=0)]
        stops = []
        for share, (begin, end) in zip(shares, pairwise(edges), strict=True):
            stop, rest = _stopped(decoder, sorted(share, key=lambda g: not g.begun), end - begin)
            stops.append(stop)
            carried += rest
        done.append((max(stops), sum(g.tokens for g in groups) - sum(g.tokens for g in carried)))
    return done


def pace(done: Sequence[StepDone], tokens: float) -> float:
    """Seconds for so many tokens at the rate of these steps. The first ones end early, at the cost of the next: their
    mean duration would depend on where one stops looking."""
    return tokens * sum(seconds for seconds, _ in done) / sum(made for _, made in done)


def _stopped(decoder: Decoder, share: Sequence[Group], quota: int) -> tuple[float, list[Group]]:
    """When one replica has completed `quota` groups, and what is left of the others then."""
    spans = iter(replay(decoder, requests(share)))
    own = [[next(spans) for _ in g.lengths] for g in share]
    ended = [max(end for _, end in some) for some in own]
    stop = sorted(ended)[quota - 1] if quota else 0.0
    return stop, [_rest(g, some, stop) for g, some, end in zip(share, own, ended, strict=True) if end > stop]


def _rest(group: Group, spans: Sequence[Span], stop: float) -> Group:
    """What is left of a group at `stop`: its unfinished responses, each as far as its share of the time has got."""
    before = group.begun or (0,) * len(group.lengths)
    left = [(n, b, min(n - 1, round(n * max(0.0, stop - begin) / (end - begin))))
            for n, b, (begin, end) in zip(group.lengths, before, spans, strict=True) if end > stop]
    done = tuple(b + d for _, b, d in left)
    gained = fmean(d for *_, d in left)
    return replace(group, lengths=tuple(n - d for n, _, d in left), expected=max(1.0, group.expected - gained),
                   begun=done)
