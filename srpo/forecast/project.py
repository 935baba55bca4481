"""The epochs to come, for one sampler: what it would show, drop and bring back, many times over.

Prompts of the same log-odds are exchangeable, so a replicate holds counts on the grid, not prompts: a million cost what
a hundred do, and the draws are exact. The sampler is the object that a run uses; it keeps nothing, so asking it once
about each of the G + 1 outcomes of a group answers for every prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from srpo.control.ledger import Outcome
from srpo.control.sampler import Sampler
from srpo.forecast.efficiency import efficiency
from srpo.forecast.growth import Growth
from srpo.forecast.latent import GRID, Latent, latest
from srpo.forecast.observed import Observed, signal

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Projection:
    """[replicates, epochs] each: prompts that take part, and groups of them that are informative."""

    prompts: Counts
    informative: Counts


def leaves(sampler: Sampler, samples: int) -> npt.NDArray[np.bool_]:
    """[samples + 1]: whether a prompt with that many correct responses leaves."""
    return np.array([sampler.drop(Outcome(samples, k, 0 < k < samples)) is not None for k in range(samples + 1)])


def project(observed: Observed, latent: Latent, growth: Growth, sampler: Sampler, epochs: int, replicates: int,
            seed: int = 0) -> Projection:
    """The next `epochs` epochs, had the sampler's rule been asked about the latest outcome of every prompt."""
    rng = np.random.default_rng(seed)
    samples = observed.samples
    gone, force, away = leaves(sampler, samples), signal(samples), sampler.away
    waiting = _pools(observed, latent, sampler, epochs, rng, replicates)
    present = np.zeros((replicates, len(GRID)), np.int64)
    rates = growth.draws(rng, replicates, epochs)
    skill = np.zeros(replicates)
    trained = np.full(replicates, observed.signals[-1])
    shown, informative = np.zeros((2, replicates, epochs), np.int64)
    for e in range(epochs):
        present, waiting = _wander(rng, present, latent.spread), {
            at: _wander(rng, counts, latent.spread) for at, counts in waiting.items()}
        present = present + waiting.pop(e, 0)
        skill += rates[:, e] * trained
        outcomes = rng.multinomial(present, binomial(GRID + skill[:, None], samples))
        correct = outcomes.sum(1)
        shown[:, e], informative[:, e] = correct.sum(1), correct[:, 1:-1].sum(1)
        left = outcomes[:, :, gone].sum(2)
        present = present - left
        if away is not None and (back := e + 1 + away) < epochs:
            waiting[back] = waiting.get(back, 0) + left
        # The median replicate's share stands for all: hundredths, and only where a sampler throws groups away.
        share = float(np.median(informative[:, e] / np.maximum(shown[:, e], 1)))
        used = efficiency(sampler, int(np.median(shown[:, e])), observed.prompts_per_step, share)[1]
        trained = correct @ force * used / observed.prompts_per_step
    return Projection(shown, informative)


def binomial(log_odds: npt.NDArray[np.float64], samples: int) -> npt.NDArray[np.float64]:
    """[..., samples + 1]: probability of each number of correct responses."""
    k = np.arange(samples + 1)
    coefficient = np.concatenate([[0.0], np.cumsum(np.log((samples + 1 - k[1:]) / k[1:]))])
    x = log_odds[..., None]
    table = np.exp(coefficient - k * np.logaddexp(0, -x) - (samples - k) * np.logaddexp(0, x))
    return table / table.sum(-1, keepdims=True)


def _pools(observed: Observed, latent: Latent, sampler: Sampler, epochs: int, rng: np.random.Generator,
           replicates: int) -> dict[int, Counts]:
    """{epochs from now: counts [replicates, len(GRID)] of the prompts that take part from then on}."""
    seen = observed.histories >= 0
    latest_epoch = seen.shape[1] - 1 - seen[:, ::-1].argmax(1)
    codes = observed.histories[np.arange(len(seen)), latest_epoch]
    gone = np.array([sampler.drop(Outcome(n, k, 0 < k < n)) is not None for n, k in observed.outcomes])
    at = np.zeros(len(seen), np.int64)
    if sampler.away is None:
        at[gone[codes]] = epochs
    else:
        ago = np.array(observed.epochs)[-1] - np.array(observed.epochs)[latest_epoch]
        at = np.where(gone[codes], np.clip(sampler.away - ago, 0, epochs), 0)
    pools = {}
    for i, expected in enumerate(latest(observed, latent, at)):
        total = int(observed.prompts[at == i].sum())
        if total and i < epochs:
            pools[i] = rng.multinomial(total, expected / expected.sum(), size=replicates)
    return pools


def _wander(rng: np.random.Generator, counts: Counts, spread: float) -> Counts:
    """Every prompt's own step, beside the growth that all share."""
    width = int(np.ceil(4 * spread / (GRID[1] - GRID[0])))
    offsets = np.arange(-width, width + 1)
    steps = np.exp(-((offsets * (GRID[1] - GRID[0]) / spread) ** 2) / 2)
    moved = rng.multinomial(counts, steps / steps.sum())
    result = np.zeros_like(counts)
    for i, offset in enumerate(offsets):
        for start, stop in zip(range(len(GRID)), np.clip(np.arange(len(GRID)) + offset, 0, len(GRID) - 1), strict=True):
            result[:, stop] += moved[:, start, i]
    return result
