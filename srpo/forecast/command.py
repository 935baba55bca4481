"""`srpo forecast`: which of forecast, back-test and simulation, printed or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from srpo.errors import UserError
from srpo.forecast import report
from srpo.forecast.compare import compare
from srpo.forecast.predict import back_test, forecast
from srpo.forecast.simulate import Scenario
from srpo.printable import visible_json
from srpo.terminal import Terminal

_LEAST = {"prompts": 1, "samples": 2, "batch": 1, "epochs": 1, "spread": 0, "unsolvable": 0, "growth": 0, "exponent": 0,
          "seed": 0}


def run(folder: Path | None, epochs: int, last: int | None, simulated: Sequence[str] | None, as_json: bool) -> None:
    """Raises UserError for a request that makes no sense, or a ledger that does not suffice."""
    show: Callable[[dict[str, Any], Terminal], None]
    if (folder is None) == (simulated is None):
        raise UserError("srpo forecast: give a run folder, or --simulate, and not both")
    if epochs < 1:
        raise UserError(f"--epochs {epochs}: must be positive")
    if simulated is not None:
        made, show = compare(scenario(simulated)), report.show_comparison
    elif last is not None:
        assert folder is not None
        made, show = back_test(folder, last), report.show_back_test
    else:
        assert folder is not None
        made, show = forecast(folder, epochs), report.show_forecast
    if as_json:
        print(visible_json(json.dumps(made, indent=2, allow_nan=False)))
    else:
        show(made, Terminal())


def scenario(overrides: Sequence[str]) -> Scenario:
    """The default one with `name=value` in place of its own. Raises UserError for another name, or a value that is no
    number or out of range."""
    made = Scenario()
    types = {name: type(value) for name, value in asdict(made).items()}
    for item in overrides:
        name, _, text = item.partition("=")
        if name not in types:
            raise UserError(f"--simulate {item}: write it as name=value; names: {', '.join(types)}")
        try:
            value = types[name](text)
        except ValueError:
            raise UserError(f"--simulate {item}: {text!r} is no {types[name].__name__}") from None
        if not value >= _LEAST.get(name, value) or value in (float("inf"), float("-inf")) or value != value:
            raise UserError(f"--simulate {item}: must be a number of at least {_LEAST.get(name, 'any size')}")
        made = replace(made, **{name: value})
    if made.unsolvable >= 1:
        raise UserError(f"--simulate unsolvable={made.unsolvable}: must be below 1")
    if made.batch > made.prompts:
        raise UserError(f"--simulate batch={made.batch}: more than the scenario's prompts={made.prompts}")
    return made
