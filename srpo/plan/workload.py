"""The responses that a plan reckons with: a ledger's, or log-normal ones."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean

from srpo.config import Config
from srpo.control.ledger import connect
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


@dataclass(frozen=True, eq=False)
class Workload:
    """The responses of some steps."""

    steps: list[list[Group]]

    @property
    def groups(self) -> list[Group]:
        """The last step's: it stands for all."""
        return self.steps[-1]

    @cached_property
    def tokens(self) -> int:
        """Of all responses."""
        return sum(g.tokens for g in self.groups)

    @cached_property
    def read(self) -> int:
        """That the trainer reads: every response with its prompt."""
        return self.tokens + sum(g.prompt * len(g.lengths) for g in self.groups)

    @cached_property
    def squares(self) -> int:
        """Sum of the squared lengths of what it reads."""
        return sum((g.prompt + n) ** 2 for g in self.groups for n in g.lengths)


def assumptions(config: Config, ledger: Path | None, work: Workload) -> list[Assumption]:
    """Of `synthetic`, or of `recorded` where a ledger is given."""
    prompt = Assumption("prompt", _prompt(config), "tokens", "guess", "with the template")
    if ledger:
        count = sum(len(g.lengths) for g in work.groups)
        return [Assumption("mean response", work.tokens / count, "tokens", "ledger", f"last step of {ledger}"), prompt]
    mean = _mean(config)
    return [
        Assumption("mean response", mean, "tokens", *(
            ("recipe", "what the report's maths stage grows to") if mean == MEAN
            else ("guess", "a third of rollout.max_response_tokens"))),
        prompt,
        Assumption("sigma of log length", SIGMA, "", "guess", "log-normal, cut at rollout.max_response_tokens"),
        Assumption("of it between prompts", BETWEEN, "share", "guess", "of the variance; the rest within a group"),
        Assumption("pass rates: Beta(x, x)", MASTERY, "", "guess", "half of the groups have no advantage, as reported"),
    ]


def workload(config: Config, ledger: Path | None) -> Workload:
    """Enough steps to replay over-sampling: a ledger's last ones, repeated where there are too few."""
    count = STEPS + math.ceil(max(config.rollout.oversample, TRIED))
    if ledger is None:
        return Workload(synthetic(config, count))
    steps = recorded(ledger, config)
    return Workload((steps[-count:] * count)[-count:])


def synthetic(config: Config, steps: int = 1) -> list[list[Group]]:
    """Groups of some steps. What is expected of a prompt is the mean of another draw: its last epoch's."""
    rng = random.Random(f"{config.seed} lengths")
    limit, samples = config.rollout.max_response_tokens, config.batch.samples
    centre = math.log(_mean(config)) - SIGMA**2 / 2
    within = SIGMA * math.sqrt(1 - BETWEEN)

    def group() -> Group:
        mean = rng.gauss(centre, SIGMA * math.sqrt(BETWEEN))

        def draw() -> tuple[int, ...]:
            return tuple(min(limit, max(1, round(math.exp(rng.gauss(mean, within))))) for _ in range(samples))

        rate = rng.betavariate(MASTERY, MASTERY)
        correct = sum(rng.random() < rate for _ in range(samples)) / samples
        return Group(_prompt(config), draw(), fmean(draw()), correct)

    return [[group() for _ in range(config.batch.prompts)] for _ in range(steps)]


def recorded(run: Path, config: Config) -> list[list[Group]]:
    """The steps of a run, in order. Expected is the prompt's mean length in its latest earlier epoch, or the mean of
    all where there is none. The ledger has no prompt lengths: those are assumed.

    Raises UserError when there is no ledger or nothing in it.
    """
    query = "SELECT step, epoch, prompt_id, tokens, correct FROM rollouts ORDER BY rowid"
    with closing(connect(run)) as db:
        rows = db.execute(query).fetchall()
    if not rows:
        raise UserError(f"--ledger {run}: holds no rollouts yet")
    return list(_steps(rows, _prompt(config)))


def _steps(rows: list[tuple[int, int, str, int, float]], prompt: int) -> Iterator[list[Group]]:
    known: dict[str, float] = {}
    epoch = 0
    latest: dict[str, float] = {}
    for _, step in groupby(rows, itemgetter(0)):
        by_prompt: dict[str, list[tuple[int, float]]] = {}
        for _, number, name, tokens, correct in step:
            if number != epoch:
                known, epoch = known | latest, number
            by_prompt.setdefault(name, []).append((tokens, correct))
        default = fmean(known.values()) if known else 1.0
        found = []
        for name, samples in by_prompt.items():
            lengths = tuple(tokens for tokens, _ in samples)
            found.append(Group(prompt, lengths, known.get(name, default), fmean(c >= 1 for _, c in samples)))
            latest[name] = fmean(lengths)
        yield found


def _mean(config: Config) -> float:
    return min(MEAN, config.rollout.max_response_tokens / 3)


def _prompt(config: Config) -> int:
    return min(PROMPT, config.data.max_prompt_tokens)
