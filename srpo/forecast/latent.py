"""How able the policy is at each prompt: a hidden Markov model over log-odds, fitted to the pass rates.

k of G correct is a noisy measure of a latent probability p. A prompt's log-odds x = logit(p) have an unknown
distribution in the epoch f that first has it, and grow from one epoch to the next by a normal step, of a mean that the
epoch's prompts share (`growth`) and a standard deviation of all (`spread`):

    x_f ~ weights_f on a grid,   x_{t+1} ~ N(x_t + growth_t, spread^2),   k_t ~ Binomial(G, sigmoid(x_t))

Fitted by expectation-maximization (Baum and Welch, 1970). The weights begin as the Beta distribution whose
beta-binomial has the pass rates' mean and variance, and are then free (Laird, 1978, the nonparametric
maximum-likelihood mixture) for some iterations only, which keeps them smooth. A prompt that an epoch did not have
later adds no factor there: since what a sampler drops depends on outcomes that the model has seen, selection needs no
correction (missing at random, Rubin 1976). Prompts that join later, as a stage brings new ones, may differ from the
first: hence weights of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from srpo.forecast.observed import Observed

Array = npt.NDArray[np.float64]

GRID: Array = np.linspace(-12, 12, 97)
"""Log-odds; 6e-6 to 1 - 6e-6."""
_ITERATIONS = 60
_MOST = 3000
"""Distinct histories that are fitted: more are sampled down to about as many prompts."""
_NARROWEST = 0.2
"""Spread that the grid's spacing of 0.25 still resolves."""
_CHUNK = 20_000
"""Histories whose posteriors are held at a time."""


@dataclass(frozen=True)
class Latent:
    """`growth`, `error` [E - 1]: mean gain in log-odds from each epoch to the next, and its standard error; `weights`
    [E, len(GRID)]: of the prompts that each epoch is the first to have; `spread`: of one prompt's gain."""

    weights: Array
    growth: Array
    error: Array
    spread: float


def fit(observed: Observed) -> Latent:
    """Deterministic. The error is from the scores' outer product, for the growth alone."""
    histories, prompts = _sampled(observed)
    emissions = emission(observed.outcomes)
    first, steps = _first(histories), histories.shape[1] - 1
    weights, growth, spread = beta(observed), np.zeros(steps), 0.5
    gain = GRID[None, :] - GRID[:, None]
    for _ in range(_ITERATIONS):
        kernels = [kernel(mean, spread) for mean in growth]
        forward, backward, scale = _passes(histories, emissions, weights, kernels)
        for t in np.unique(first):
            new = first == t
            weights[t] = prompts[new] @ (forward[t] * backward[t])[new] / prompts[new].sum()
        squares = total = 0.0
        for t in range(steps):
            ahead = backward[t + 1] * _likelihood(histories, emissions, t + 1)
            pairs = kernels[t] * (forward[t].T @ (ahead * (prompts * (first <= t) / scale[t + 1])[:, None]))
            growth[t] = (pairs * gain).sum() / pairs.sum()
            squares += (pairs * (gain - growth[t]) ** 2).sum()
            total += pairs.sum()
        spread = max(np.sqrt(squares / total), _NARROWEST) if steps else spread
    kernels = [kernel(mean, spread) for mean in growth]
    forward, backward, _ = _passes(histories, emissions, weights, kernels)
    means = np.array([(f * b) @ GRID for f, b in zip(forward, backward, strict=True)])
    scores = (np.diff(means, axis=0) - growth[:, None]) / spread**2 * (first <= np.arange(steps)[:, None])
    information = (scores**2) @ prompts
    return Latent(weights, growth, 1 / np.sqrt(np.maximum(information, 1e-12)), float(spread))


def beta(observed: Observed) -> Array:
    """[E, len(GRID)]: of the prompts that each epoch is the first to have, the Beta(a, b) of their pass rates in it by
    moments, its variance within bounds; uniform in log-odds where there are none.

    With correlation rho = 1 / (a + b + 1), the variance of k/G is m (1 - m) (rho + (1 - rho) / G): Skellam, 1948.
    """
    first, epochs = _first(observed.histories), observed.histories.shape[1]
    weights = np.full((epochs, len(GRID)), 1 / len(GRID))
    for t in np.unique(first):
        weights[t] = _beta(np.array(observed.outcomes, float)[observed.histories[first == t, t]],
                           observed.prompts[first == t])
    return weights


def _beta(outcomes: Array, prompts: npt.NDArray[np.int64]) -> Array:
    samples, correct = outcomes.T
    mean = np.clip(np.average(correct / samples, weights=prompts), 0.01, 0.99)
    variance = np.average((correct / samples - mean) ** 2, weights=prompts) / (mean * (1 - mean))
    noise = np.average(1 / samples, weights=prompts)
    rho = np.clip((variance - noise) / (1 - noise), 0.02, 0.9)
    a, b = mean * (1 / rho - 1), (1 - mean) * (1 / rho - 1)
    log = -a * np.logaddexp(0, -GRID) - b * np.logaddexp(0, GRID)  # density of the log-odds: p^a (1 - p)^b
    density = np.exp(log - log.max())
    return density / density.sum()


def latest(observed: Observed, latent: Latent, group: npt.NDArray[np.int64]) -> Array:
    """[max(group) + 1, len(GRID)]: expected number of prompts at each log-odds in the latest epoch, given all that the
    run has seen of them; `group` [H] says which row a history adds to."""
    emissions = emission(observed.outcomes)
    kernels = [kernel(mean, latent.spread) for mean in latent.growth]
    totals = np.zeros((group.max() + 1, len(GRID)))
    for start in range(0, len(group), _CHUNK):
        part = slice(start, start + _CHUNK)
        forward, _ = _forward(observed.histories[part], emissions, latent.weights, kernels)
        np.add.at(totals, group[part], forward[-1] * observed.prompts[part, None])
    return totals


def emission(outcomes: list[tuple[int, int]]) -> Array:
    """[len(outcomes), len(GRID)]: likelihood of (samples, correct), without the binomial coefficient, at most 1."""
    samples, correct = np.array(outcomes, float).reshape(-1, 2).T[:, :, None]
    log = -correct * np.logaddexp(0, -GRID) - (samples - correct) * np.logaddexp(0, GRID)
    return np.exp(log - log.max(1, keepdims=True))


def kernel(mean: float, spread: float) -> Array:
    """[from, to]: normal steps on the grid; what would leave it stays at its edge."""
    log = -((GRID[None, :] - np.clip(GRID[:, None] + mean, GRID[0], GRID[-1])) / spread) ** 2 / 2
    steps = np.exp(log)
    return steps / steps.sum(1, keepdims=True)


def _likelihood(histories: npt.NDArray[np.int32], emissions: Array, t: int) -> Array:
    """[H, len(GRID)]; 1 where epoch t did not have the prompt."""
    return np.concatenate([emissions, np.ones((1, len(GRID)))])[histories[:, t]]


def _first(histories: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """[H]: the epoch that was the first to have each."""
    return (histories >= 0).argmax(1)


def _forward(histories: npt.NDArray[np.int32], emissions: Array, weights: Array,
             kernels: list[Array]) -> tuple[list[Array], list[Array]]:
    """Forward variables [H, len(GRID)] and scales [H] of each epoch (Rabiner, 1989); before a prompt's first epoch they
    are of no meaning."""
    first = _first(histories)
    forward: list[Array] = []
    scale: list[Array] = []
    for t in range(len(kernels) + 1):
        prior = forward[-1] @ kernels[t - 1] if t else np.full((len(histories), len(GRID)), 1 / len(GRID))
        prior[first == t] = weights[t]
        state = prior * _likelihood(histories, emissions, t)
        scale.append(state.sum(1))
        forward.append(state / scale[-1][:, None])
    return forward, scale


def _passes(histories: npt.NDArray[np.int32], emissions: Array, weights: Array,
            kernels: list[Array]) -> tuple[list[Array], list[Array], list[Array]]:
    """Forward and backward variables of each epoch, whose product is the posterior, and scales."""
    forward, scale = _forward(histories, emissions, weights, kernels)
    backward = [np.ones_like(forward[0])]
    for t in range(len(kernels), 0, -1):
        back = (backward[0] * _likelihood(histories, emissions, t)) @ kernels[t - 1].T
        backward.insert(0, back / scale[t][:, None])
    return forward, backward, scale


def _sampled(observed: Observed) -> tuple[npt.NDArray[np.int32], Array]:
    """Histories and how many prompts have each, thinned where there are too many."""
    if len(observed.prompts) <= _MOST:
        return observed.histories, observed.prompts.astype(float)
    share = observed.prompts / observed.prompts.sum()
    drawn = np.random.default_rng(0).multinomial(_MOST, share)
    return observed.histories[drawn > 0], drawn[drawn > 0].astype(float)
