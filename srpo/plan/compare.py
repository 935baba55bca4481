"""What balance, over-sampling and samplers save, replayed on the same groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from srpo.config import Resample
from srpo.control.resample import sampler
from srpo.plan.simulate import Decoder, Group, balanced, dealt, ends, foreseen, makespan, over_sampled, pace
from srpo.plan.workload import Step, Workload, formed


@dataclass(frozen=True)
class Replayed:
    """A sampler on these groups: it drops what it would after the epoch, and makes steps of those that stay."""

    sampler: str
    configured: bool
    recorded: bool
    """The run's, whose ledger is replayed: what that had dropped before is not there."""
    dropped: float
    """Share of an epoch's tokens that it saves in the next."""
    rounds: float
    """Of generation, a step."""
    groups: float
    """Sampled, a step."""
    no_advantage: float
    """Share of the groups trained on that are all right or all wrong, ..."""
    seconds: float
    """Of generation, a step."""
    seconds_for_a_batch: float | None
    """Of generation, for batch.prompts groups trained on that are neither; None: there are none."""


@dataclass(frozen=True)
class Comparison:
    """Mean seconds of a step's generation, in all of its rounds."""

    random: float
    balanced: float
    foreseen: float
    even: float
    """Mean over the balanced replicas: nobody can be faster who only moves work between them."""
    over_sampled: float | None
    """None with dynamic sampling, which does not go with it."""
    samplers: list[Replayed]


def compare(decoder: Decoder, work: Workload, replicas: int, factor: float, resample: Resample, prompts: int
            ) -> Comparison:
    """`factor`: of rollout.oversample; `resample`: the configuration's; `prompts`: batch.prompts."""
    count = len(work.steps)
    times = [[ends(decoder, balanced(some, replicas)) for some in step.rounds] for step in work.steps]
    return Comparison(
        random=fmean(sum(makespan(decoder, dealt(some, replicas, seed)) for some in step.rounds)
                     for seed, step in enumerate(work.steps)),
        balanced=fmean(sum(map(max, rounds)) for rounds in times),
        foreseen=fmean(sum(makespan(decoder, foreseen(some, replicas)) for some in step.rounds) for step in work.steps),
        even=fmean(sum(map(fmean, rounds)) for rounds in times),
        over_sampled=None if resample.sampler == "dynamic" else pace(
            over_sampled(decoder, [step.groups for step in work.steps], replicas, factor),
            fmean(sum(g.tokens for g in step.groups) for step in work.steps)),
        samplers=[_replayed(decoder, work, replicas, some, some == resample, prompts, count)
                  for some in _samplers(work, resample)])


def _samplers(work: Workload, resample: Resample) -> Iterator[Resample]:
    """Plain epochs, history resampling, the run's and the configuration's, each once."""
    found = [Resample(sampler="plain"), Resample()]
    found += [work.recorded.sampler] if work.recorded and work.recorded.sampler else []
    for i, some in enumerate(found := [*found, resample]):
        if some not in found[:i]:
            yield some


def _replayed(decoder: Decoder, work: Workload, replicas: int, resample: Resample, configured: bool, prompts: int,
              count: int) -> Replayed:
    rule = sampler(resample)
    leaving = sum(tokens for outcome, (_, tokens) in work.outcomes.items() if rule.drop(outcome))
    stay = [g for g in work.groups if not rule.drop(g.outcome)]
    made = formed(rule, stay, prompts, count) if stay else []
    trained = [g for step in made for g in step.trained]
    mixed = sum(g.mixed for g in trained)
    seconds = _seconds(decoder, made, replicas)
    return Replayed(
        sampler=_name(resample), configured=configured,
        recorded=work.recorded is not None and resample == work.recorded.sampler,
        dropped=leaving / sum(tokens for _, tokens in work.outcomes.values()),
        rounds=sum(len(step.rounds) for step in made) / count, groups=sum(len(step.groups) for step in made) / count,
        no_advantage=1 - mixed / len(trained) if trained else 0.0, seconds=seconds,
        seconds_for_a_batch=seconds * count * prompts / mixed if mixed else None)


def _seconds(decoder: Decoder, made: Sequence[Step], replicas: int) -> float:
    rounds: list[Sequence[Group]] = [some for step in made for some in step.rounds]
    return sum(makespan(decoder, balanced(some, replicas)) for some in rounds) / max(len(made), 1)


def _name(resample: Resample) -> str:
    """With the keys that are not the defaults."""
    own = resample.model_dump(exclude_defaults=True) | {"sampler": resample.sampler}
    keys = ", ".join(f"{key} {value:g}" for key, value in own.items() if key != "sampler")
    return own["sampler"] + f" ({keys})" * bool(keys)
