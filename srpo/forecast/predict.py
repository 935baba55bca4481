"""`srpo forecast RUN`: the next epochs by sampler, and the back-test of the run's own."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from srpo.config import Resample
from srpo.control.ledger import connect
from srpo.control.resample import recorded, sampler
from srpo.control.sampler import Sampler
from srpo.errors import UserError
from srpo.forecast.compare import SAMPLERS
from srpo.forecast.efficiency import efficiency
from srpo.forecast.growth import ASSUMED, VARIES, Growth, growth
from srpo.forecast.latent import Latent, fit
from srpo.forecast.observed import Observed, observed
from srpo.forecast.project import Projection, project

REPLICATES = 200
REACH = 20
"""Epochs within which the end of the data is looked for."""
LEVELS = {"low": 5, "mid": 50, "high": 95}
"""Percentiles: 90 % intervals."""


def forecast(run: Path, epochs: int) -> dict[str, Any]:
    """JSON-able: what was seen, what is assumed, and `of` each sampler its next `epochs` epochs and when they run out.
    The run's own is as the run sets it, the others as the configuration's defaults do. Raises UserError when no epoch
    has closed."""
    seen, mine = observed(run), recorded(run) or Resample()
    settings = {name: mine if name == mine.sampler else Resample.model_validate({"sampler": name})
                for name in SAMPLERS}
    latent = fit(seen)
    grows = growth(seen, latent)
    return {**_basis(run, seen, latent, grows), "sampler": mine.sampler,
            "of": {name: _sampler(seen, latent, grows, sampler(resample), epochs)
                   for name, resample in settings.items()}}


def back_test(run: Path, last: int, resample: Resample | None = None) -> dict[str, Any]:
    """Forecast from the run's epochs up to `last`, with the run's sampler, beside what the ledger says of the later
    epochs of the same stage. Raises UserError when it has none."""
    seen, resample = observed(run, last), resample or recorded(run) or Resample()
    actual = _actual(run, seen)
    latent = fit(seen)
    grows = growth(seen, latent)
    made = _sampler(seen, latent, grows, sampler(resample), len(actual))
    epochs = []
    for predicted, (prompts, informative) in zip(made["epochs"], actual, strict=True):
        row: dict[str, Any] = {"epoch": predicted["epoch"]}
        for name, value in (("prompts", prompts), ("informative_share", informative / prompts)):
            within = predicted[name]["low"] <= value <= predicted[name]["high"]
            row[name] = {**predicted[name], "actual": value, "within": within}
        epochs.append(row)
    return {**_basis(run, seen, latent, grows), "sampler": resample.sampler, "epochs": epochs}


def _basis(run: Path, seen: Observed, latent: Latent, grows: Growth) -> dict[str, Any]:
    return {
        "run": str(run), "epochs_seen": seen.epochs, "stage": seen.stages[-1], "prompts": int(seen.prompts.sum()),
        "samples": seen.samples, "prompts_per_step": seen.prompts_per_step,
        "growth": [{"from": a, "to": b, "log_odds": float(g), "error": float(e)} for a, b, g, e in zip(
            seen.epochs, seen.epochs[1:], latent.growth, latent.error, strict=False)],
        "next_growth": {"log_odds": grows.rate * float(seen.signals[-1]),
                        "error": float(np.hypot(grows.error, grows.varies) * seen.signals[-1])},
        "spread": latent.spread, "assumptions": _assumptions(grows.observed),
    }


def _assumptions(observed_steps: int) -> list[str]:
    lines = ["A prompt's log-odds grow by what the groups trained on could teach (the spread of their correctness), by "
             "the same for all prompts of an epoch and a normal step of its own.",
             "Informative means that correctness differs within a group; a reward's other parts are not reckoned with.",
             "The stage goes on: no domain joins, and prompts that the ledger has not seen do not take part."]
    if observed_steps == 0:
        lines.insert(0, f"ASSUMED growth: {ASSUMED[0]} +- {ASSUMED[1]} log-odds to the next epoch, since the "
                        "ledger has no prompts of two epochs to tell it from.")
    elif observed_steps == 1:
        lines.insert(0, f"Growth was observed once; that its rate varies by {VARIES:.0%} an epoch is ASSUMED.")
    return lines


def _sampler(seen: Observed, latent: Latent, grows: Growth, rule: Sampler, epochs: int) -> dict[str, Any]:
    made = project(seen, latent, grows, rule, max(epochs, REACH), REPLICATES)
    rows = []
    for e in range(epochs):
        shown, informative = made.prompts[:, e], made.informative[:, e]
        share = informative / np.maximum(shown, 1)
        steps, used = efficiency(rule, int(np.median(shown)), seen.prompts_per_step, float(np.median(share)))
        cost = np.where(informative > 0, shown * seen.samples / np.maximum(informative * used, 1e-9), np.inf)
        rows.append({"epoch": seen.epochs[-1] + 1 + e, "prompts": _interval(shown),
                     "informative_share": _interval(share), "rollouts": _interval(shown * seen.samples),
                     "rollouts_per_informative_group": _interval(cost), "steps": steps})
    return {"epochs": rows, "runs_out": _runs_out(made, seen)}


def _runs_out(made: Projection, seen: Observed) -> dict[str, int | None]:
    """The first epoch whose informative groups would not fill a step; None: later than REACH epochs from now."""
    short = made.informative < seen.prompts_per_step
    first = np.where(short.any(1), short.argmax(1), short.shape[1])
    found = {name: int(np.percentile(first, level, method="nearest")) for name, level in LEVELS.items()}
    return {name: None if at == short.shape[1] else seen.epochs[-1] + 1 + at for name, at in found.items()}


def _interval(draws: npt.NDArray[Any]) -> dict[str, float | None]:
    """None for what has no bound: a cost where nothing is informative."""
    values = {name: float(np.percentile(draws, level, method="nearest")) for name, level in LEVELS.items()}
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _actual(run: Path, seen: Observed) -> list[tuple[int, int]]:
    """(prompts, informative) of each epoch that follows in the same stage."""
    with closing(connect(run)) as db:
        rows = db.execute(
            "SELECT e.epoch, e.stage, COUNT(*), SUM(p.correct > 0 AND p.correct < p.samples) FROM epochs e "
            "JOIN prompts p ON p.epoch = e.epoch WHERE e.epoch > ? GROUP BY e.epoch ORDER BY e.epoch",
            (seen.epochs[-1],)).fetchall()
    found = []
    for i, (epoch, stage, prompts, informative) in enumerate(rows):
        if stage != seen.stages[-1] or epoch != seen.epochs[-1] + 1 + i:
            break
        found.append((prompts, informative))
    if not found:
        raise UserError(f"{run}: no epoch of stage {seen.stages[-1]!r} has closed after epoch {seen.epochs[-1]}; "
                        "--from-epoch needs later ones to compare with")
    return found
