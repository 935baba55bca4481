"""A ledger as a run would have written it, of prompts whose latent log-odds are known."""

from dataclasses import dataclass, field

import numpy as np

from srpo.config import Resample
from srpo.control.ledger import Ledger, RolloutRow
from srpo.control.resample import Resampling, sampler
from srpo.control.steps import steps as made


@dataclass
class Truth:
    """What the rule said of each epoch: prompts, informative groups; and the growth after it in log-odds."""

    prompts: list[int] = field(default_factory=list)
    informative: list[int] = field(default_factory=list)
    growth: list[float] = field(default_factory=list)


def write(path, *, prompts=400, samples=8, epochs=5, first=0.7, spread=0.3, resample=None, seed=0, steps=5):
    """Growth is in proportion to the signal of what each epoch trained on and begins with `first`; `steps`: of the
    first epoch without refilling."""
    rng = np.random.default_rng(seed)
    ledger, truth = Ledger(path), Truth()
    rule = sampler(resample or Resample())
    resampling = Resampling(rule, ledger)
    x = rng.normal(-0.5, 2.0, prompts)
    ids = [f"p{i}" for i in range(prompts)]
    rate, step = 0.0, 0
    for epoch in range(1, epochs + 1):
        order = [int(name[1:]) for name in resampling.present(ids, epoch)]
        right = rng.binomial(samples, 1 / (1 + np.exp(-x[order])))
        mixed = (right > 0) & (right < samples)
        trained = []
        for part in made(rule, len(order), -(-prompts // steps), lambda places, mixed=mixed: mixed[places].tolist()):
            step += 1
            trained += part.trained
            ledger.append([RolloutRow(epoch, step, "one", ids[order[i]], s, "math", float(s < right[i]),
                                      float(s < right[i]), 10, False) for i in part.prompts for s in range(samples)],
                          unused=[ids[order[i]] for i in set(part.prompts) - set(part.trained)])
        resampling.close_epoch(epoch, "one", ids)
        mean = right[trained] / samples
        signal = float(np.sqrt(mean * (1 - mean)).sum())
        rate = rate or first / signal
        truth.prompts.append(len(order))
        truth.informative.append(int(mixed.sum()))
        truth.growth.append(rate * signal)
        x = x + rate * signal + spread * rng.standard_normal(prompts)
    ledger.close()
    return truth
