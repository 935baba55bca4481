"""How fast the log-odds grow per unit of gradient signal, and how sure that is.

Growth from one epoch to the next is taken to be proportional to `signal` summed over the groups that the earlier one
trained on: it slows as fewer groups are informative, and differs from sampler to sampler by what each trains on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from srpo.forecast.latent import Latent
from srpo.forecast.observed import Observed

ASSUMED = (0.75, 0.75)
"""Mean and standard deviation of the first epoch's growth in log-odds where only one epoch has closed."""
VARIES = 0.3
"""Standard deviation of the growth's rate from epoch to epoch, as a part of it: a guess that counts as one observed
difference and gives way to those of the ledger."""

UNKNOWN = 2.0
"""A growth whose standard error is larger says nothing: hardly a prompt was in both epochs."""


@dataclass(frozen=True)
class Growth:
    """Log-odds per unit of signal: a normal rate, and normal deviations of single epochs from it."""

    rate: float
    error: float
    varies: float
    observed: int = 0
    """Steps from epoch to epoch that it was taken from; 0: assumed."""

    def draws(self, rng: np.random.Generator, replicates: int, epochs: int) -> npt.NDArray[np.float64]:
        """[replicates, epochs]"""
        rates = self.rate + self.error * rng.standard_normal((replicates, 1))
        return rates + self.varies * rng.standard_normal((replicates, epochs))


def growth(observed: Observed, latent: Latent) -> Growth:
    """The mean over the observed steps from epoch to epoch; assumed where none tells anything."""
    signals = observed.signals
    used = (signals[:-1] > 0) & (latent.error < UNKNOWN)
    if not used.any():
        mean, error = (value / max(signals[-1], 1.0) for value in ASSUMED)
        return Growth(mean, error, VARIES * mean)
    rates, errors = latent.growth[used] / signals[:-1][used], latent.error[used] / signals[:-1][used]
    n, rate = len(rates), float(rates.mean())
    varies = np.sqrt(((VARIES * rate) ** 2 + ((rates - rate) ** 2).sum()) / n)
    return Growth(rate, float(np.sqrt((errors**2).mean() / n + varies**2 / n)), float(varies), n)
