"""How hard a problem is for a given model: the share of k sampled responses that are right, and a name for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from srpo.config import Reward, answer_style, stop_strings
from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.rewards.compose import Graders, Response


@dataclass(frozen=True)
class Difficulty:
    """Sampling settings, as srpo/rollout/standalone.py takes them. A problem is easy from a pass rate of `easy` on,
    hard up to `hard`, else medium.

    SRPO's report says "challenging" and gives no thresholds: these are ours.
    """

    model: str
    samples: int = 8
    easy: float = 0.75
    hard: float = 0.25
    max_tokens: int = 2048
    template: str = "chat"
    dtype: str = "auto"
    allow_unsafe_sandbox: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.hard < self.easy <= 1:
            raise UserError(f"thresholds easy = {self.easy}, hard = {self.hard}: must be 0 <= hard < easy <= 1")
        if self.samples < 1 or self.max_tokens < 1:
            raise UserError(f"samples = {self.samples}, max_tokens = {self.max_tokens}: must be at least 1")

    def name(self, pass_rate: float) -> str:
        return "easy" if pass_rate >= self.easy else "hard" if pass_rate <= self.hard else "medium"


class Meter:
    """The model in vLLM and the graders beside it; both take seconds to start, so keep it."""

    def __init__(self, settings: Difficulty, workers: int):
        from srpo.rollout.standalone import StandaloneEngine

        self._settings = settings
        self._engine = StandaloneEngine(settings.model, settings.template, settings.max_tokens, dtype=settings.dtype,
                                        stop=stop_strings(None, settings.template))
        reward = Reward(format=0.0, style=answer_style(None, settings.template),
                        allow_unsafe_sandbox=settings.allow_unsafe_sandbox)
        self._graders = Graders(reward, settings.max_tokens, workers)

    def pass_rates(self, problems: Sequence[Problem]) -> list[float]:
        k, by_id = self._settings.samples, {p.id: p for p in problems}
        for finished in self._engine.generate([problems], k, temperature=1.0):
            self._graders.submit({key: Response(by_id[key[0]], c.text, c.tokens, c.truncated)
                                  for key, c in finished.items()})
        graded = self._graders.collect()
        return [sum(graded[p.id, j].correct == 1 for j in range(k)) / k for p in problems]

    def close(self) -> None:
        self._graders.close()
