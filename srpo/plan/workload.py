"""The responses that a plan reckons with, a ledger's latest or log-normal ones, and the steps that a sampler makes of
them.

A ledger can have a hundred million rollouts: single responses are read of as many groups as are replayed, all else is
summed up by SQLite.
"""

from __future__ import annotations

import json
import math
import random
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from srpo.config import Config, Resample
from srpo.control import resample
from srpo.control.ledger import Outcome, connect
from srpo.control.sampler import Sampler
from srpo.control.steps import steps
from srpo.errors import UserError
from srpo.plan.hardware import Assumption
from srpo.plan.simulate import Group

MEAN = 2500
"""Response tokens: what the SRPO report's maths stage grows to."""
PROMPT = 200
SIGMA = 1.0
BETWEEN = 0.5
MASTERY = 0.2
TRIED = 1.25
"""rollout.oversample of the comparison where the configuration has none."""
STEPS = 2
"""Steps that are replayed, after as many as over-sampling has in flight at first."""


class Load(NamedTuple):
    """What a phase has to do with a step's responses, over all GPUs; a mean of some steps."""

    responses: float
    tokens: float
    """Of responses."""
    read: float
    """Of responses with their prompts."""
    squares: float
    """Sum of the squared lengths of what is read."""

    @classmethod
    def of(cls, groups: Iterable[Group], steps: int = 1) -> Load:
        sizes = [(g.prompt + n, n) for g in groups for n in g.lengths]
        totals = len(sizes), sum(n for _, n in sizes), sum(s for s, _ in sizes), sum(s * s for s, _ in sizes)
        return cls(*(total / steps for total in totals))

    def without(self, other: Load) -> Load:
        return Load(*(a - b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Step:
    """`rounds` of generation, one after another, and the groups that the update uses."""

    rounds: list[list[Group]]
    trained: list[Group]

    @property
    def groups(self) -> list[Group]:
        return [g for some in self.rounds for g in some]


@dataclass(frozen=True)
class Recorded:
    """Where a ledger's groups are from."""

    run: Path
    groups: int
    """That the run has sampled in all, of which the latest are replayed."""
    epoch: int
    """Whose prompts `Workload.outcomes` has."""
    sampler: Resample | None
    """The run's; None where there is no configuration beside its ledger."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"run": str(self.run), "groups": self.groups, "epoch": self.epoch,
                "resample": self.sampler.model_dump() if self.sampler else None}


@dataclass(frozen=True, eq=False)
class Workload:
    """Groups in the order that they are sampled in, and what the configuration's sampler makes of them."""

    groups: list[Group]
    steps: list[Step]
    """Of batch.prompts x batch.samples responses, or more where the sampler fills them up."""
    outcomes: dict[Outcome, tuple[int, int]]
    """Groups and tokens of an epoch by outcome."""
    recorded: Recorded | None = None

    @cached_property
    def generated(self) -> Load:
        return Load.of((g for step in self.steps for g in step.groups), len(self.steps))

    @cached_property
    def trained(self) -> Load:
        """What the update reads."""
        return Load.of((g for step in self.steps for g in step.trained), len(self.steps))

    @cached_property
    def learning(self) -> Load:
        """Of that, what has an advantage."""
        return Load.of((g for step in self.steps for g in step.trained if g.learns), len(self.steps))


def workload(config: Config, ledger: Path | None, mean: int | None = None) -> Workload:
    """Enough steps to replay over-sampling; without a ledger, of responses of `mean` tokens. Raises UserError when the
    ledger cannot be read, or is empty."""
    count = STEPS + math.ceil(max(config.rollout.oversample, TRIED))
    if ledger is None:
        groups, origin = synthetic(config, count * config.batch.prompts, mean), None
        outcomes = tally(groups)
    else:
        groups, outcomes, origin = recorded(ledger, config, count * config.batch.prompts)
    return Workload(groups, formed(resample.sampler(config.resample), groups, config.batch.prompts, count), outcomes,
                    origin)


def formed(rule: Sampler, groups: Sequence[Group], prompts: int, count: int) -> list[Step]:
    """The first `count` steps of `prompts` prompts that a sampler makes of these groups, which come round again."""
    def roll_out(places: range) -> list[bool]:
        return [groups[i % len(groups)].mixed for i in places]

    def some(places: Iterable[int]) -> list[Group]:
        return [groups[i % len(groups)] for i in places]

    made = islice(steps(rule, sys.maxsize, prompts, roll_out), count)
    return [Step([some(places) for places in step.rounds], some(step.trained)) for step in made]


def tally(groups: Iterable[Group]) -> dict[Outcome, tuple[int, int]]:
    found: dict[Outcome, tuple[int, int]] = {}
    for g in groups:
        count, tokens = found.get(g.outcome, (0, 0))
        found[g.outcome] = count + 1, tokens + g.tokens
    return found


def assumptions(config: Config, work: Workload, given: int | None = None) -> list[Assumption]:
    """About `synthetic` groups, or recorded ones."""
    prompt = Assumption("prompt", _prompt(config), "tokens", "guess", "with the template")
    learning = sum(g.learns for g in work.groups) / len(work.groups)
    if work.recorded:
        where = f"the latest {len(work.groups):,} of {work.recorded.groups:,} groups of {work.recorded.run}"
        load = Load.of(work.groups)
        return [Assumption("mean response", load.tokens / load.responses, "tokens", "ledger", where),
                Assumption("groups with an advantage", learning, "share", "ledger", "of these"), prompt]
    mean = given or _mean(config)
    return [
        Assumption("mean response", mean, "tokens", *(
            ("given", "--mean-tokens") if given
            else ("recipe", "what the report's maths stage grows to") if mean == MEAN
            else ("guess", "a third of rollout.max_response_tokens"))),
        prompt,
        Assumption("sigma of log length", SIGMA, "", "guess", "log-normal, cut at rollout.max_response_tokens"),
        Assumption("of it between prompts", BETWEEN, "share", "guess", "of the variance; the rest within a group"),
        Assumption("pass rates: Beta(x, x)", MASTERY, "", "guess", "half of the groups have no advantage, as reported"),
    ]


# -- log-normal -----------------------------------------------------------------------------------------------------


def synthetic(config: Config, count: int, given: int | None = None) -> list[Group]:
    """What is expected of a prompt is the mean of another draw: its last epoch's."""
    rng = random.Random(f"{config.seed} lengths")
    limit, samples = config.rollout.max_response_tokens, config.batch.samples
    centre = math.log(given or _mean(config)) - SIGMA**2 / 2
    within = SIGMA * math.sqrt(1 - BETWEEN)

    def group() -> Group:
        mean = rng.gauss(centre, SIGMA * math.sqrt(BETWEEN))

        def draw() -> tuple[int, ...]:
            return tuple(min(limit, max(1, round(math.exp(rng.gauss(mean, within))))) for _ in range(samples))

        rate = rng.betavariate(MASTERY, MASTERY)
        correct = sum(rng.random() < rate for _ in range(samples))
        mixed = 0 < correct < samples
        return Group(_prompt(config), draw(), fmean(draw()), correct, mixed, learns=mixed)

    return [group() for _ in range(count)]


def _mean(config: Config) -> float:
    return min(MEAN, config.rollout.max_response_tokens / 3)


def _prompt(config: Config) -> int:
    return min(PROMPT, config.data.max_prompt_tokens)


# -- a ledger's -----------------------------------------------------------------------------------------------------


def recorded(run: Path, config: Config, count: int) -> tuple[list[Group], dict[Outcome, tuple[int, int]], Recorded]:
    """The latest `count` groups of a run, in its order, or all that there are; the outcomes of its latest closed epoch,
    or of the open one where none is closed. The ledger has no prompt lengths: those are assumed.

    A group of more responses than batch.samples counts with its first ones, one of fewer with some twice. Raises
    UserError when there is no ledger or nothing in it.
    """
    with closing(connect(run)) as db:
        total = db.execute("SELECT COALESCE(MAX(rowid), 0) FROM prompts").fetchone()[0]
        if not total:
            raise UserError(f"--ledger {run}: holds no rollouts yet")
        groups = _groups(db, config, count)
        epoch = db.execute("SELECT COALESCE((SELECT MAX(epoch) FROM epochs), (SELECT MAX(epoch) FROM prompts))"
                           ).fetchone()[0]
        outcomes = {Outcome(samples, correct, bool(mixed)): (number, tokens) for samples, correct, mixed, number, tokens
                    in db.execute("SELECT samples, correct, mixed, COUNT(*), SUM(tokens) FROM prompts WHERE epoch = ? "
                                  "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3", (epoch,))}
    return groups, outcomes, Recorded(run, total, epoch, resample.recorded(run))


def _groups(db: sqlite3.Connection, config: Config, count: int) -> list[Group]:
    """Of the latest steps. Their rollouts are the last rows: rows are numbered without gaps."""
    (first,) = db.execute("SELECT MIN(step) FROM (SELECT step FROM prompts ORDER BY rowid DESC LIMIT ?)",
                          (count,)).fetchone()
    (last,) = db.execute("SELECT SUM(rollouts) FROM steps WHERE step >= ?", (first,)).fetchone()
    found: dict[tuple[int, int, str], list[tuple[int, float, float]]] = {}
    for step, epoch, prompt, tokens, correct, reward in db.execute(
            "SELECT step, epoch, prompt_id, tokens, correct, reward FROM rollouts "
            "WHERE rowid > (SELECT MAX(rowid) FROM rollouts) - ? ORDER BY rowid", (last,)):
        found.setdefault((step, epoch, prompt), []).append((tokens, correct, reward))
    latest = list(found.items())[-count:]
    lengths = _known_lengths(db, {prompt for (_, _, prompt), _ in latest})
    known = [[mean for before, mean in lengths[prompt] if before < epoch][-1:] for (_, epoch, prompt), _ in latest]
    default = fmean(mean for some in known for mean in some) if any(known) else 1.0
    groups = []
    for (_, rows), expected in zip(latest, known, strict=True):
        tokens, correct, rewards = zip(*(rows[i % len(rows)] for i in range(config.batch.samples)), strict=True)
        groups.append(Group(_prompt(config), tokens, expected[0] if expected else default, sum(c >= 1 for c in correct),
                            min(correct) < max(correct), min(rewards) < max(rewards)))
    return groups


def _known_lengths(db: sqlite3.Connection, prompts: set[str]) -> dict[str, list[tuple[int, float]]]:
    """Of each prompt (epoch, mean response tokens), in order."""
    found: dict[str, list[tuple[int, float]]] = {}
    for prompt, epoch, mean in db.execute(
            "SELECT prompt_id, epoch, CAST(tokens AS REAL) / samples FROM prompts "
            "WHERE prompt_id IN (SELECT value FROM json_each(?)) ORDER BY rowid", (json.dumps(sorted(prompts)),)):
        found.setdefault(prompt, []).append((epoch, mean))
    return found
