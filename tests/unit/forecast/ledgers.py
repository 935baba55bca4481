"""A ledger as a run would have written it, of prompts whose latent log-odds are known."""

from dataclasses import dataclass, field

import numpy as np

from srpo.config import Resample
from srpo.control.ledger import Ledger, RolloutRow
from srpo.control.resample import Resampling, sampler


@dataclass
class Truth:
    """What the rule said of each epoch: prompts, informative groups; and the growth after it in log-odds."""

    prompts: list[int] = field(default_factory=list)
    informative: list[int] = field(default_factory=list)
    growth: list[float] = field(default_factory=list)


def write(path, *, prompts=400, samples=8, epochs=5, first=0.7, spread=0.3, resample=None, seed=0, steps=5):
    """Growth is in proportion to each epoch's signal and begins with `first`."""
    rng = np.random.default_rng(seed)
    ledger, truth = Ledger(path), Truth()
    resampling = Resampling(sampler(resample or Resample()), ledger)
    x = rng.normal(-0.5, 2.0, prompts)
    ids = [f"p{i}" for i in range(prompts)]
    rate, step = 0.0, 0
    for epoch in range(1, epochs + 1):
        order = [int(name[1:]) for name in resampling.present(ids, epoch)]
        right = rng.binomial(samples, 1 / (1 + np.exp(-x[order])))
        for part in np.array_split(np.arange(len(order)), steps):
            step += 1
            ledger.append([RolloutRow(epoch, step, "one", ids[order[i]], s, "math", float(s < right[i]),
                                      float(s < right[i]), 10, False) for i in part for s in range(samples)])
        resampling.close_epoch(epoch, "one", ids)
        mean = right / samples
        signal = float(np.sqrt(mean * (1 - mean)).sum())
        rate = rate or first / signal
        truth.prompts.append(len(order))
        truth.informative.append(int(((right > 0) & (right < samples)).sum()))
        truth.growth.append(rate * signal)
        x = x + rate * signal + spread * rng.standard_normal(prompts)
    ledger.close()
    return truth
