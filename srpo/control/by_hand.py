"""Stages ended by hand: `srpo stage RUN next` leaves a request in the run folder; the run takes it up between steps.

What was asked, and the step after which it took effect, stays in RUN/stages.jsonl, which no resume rolls back: a run
that was killed and goes back to an earlier checkpoint ends the stage after the very same step again.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from srpo.errors import UserError
from srpo.files import write_json, write_text, writing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """To end a stage; `asked`, the time, tells requests apart."""

    stage: str
    asked: str


class ByHand:
    """What a run was asked, for the run itself. Raises UserError when a file cannot be read or written."""

    def __init__(self, run: Path):
        self._run = run
        self._taken_up: list[dict[str, Any]] = []
        if (file := _taken_up(run)).exists():
            self._taken_up = [_parse(line, f"{file}:{i}", {"stage": str, "step": int, "asked": str})
                              for i, line in enumerate(_read(file).splitlines(), 1)]

    def ends(self, stage: str | None, step: int) -> bool:
        """Whether the current stage, None after the last one, ends after this step: someone asks now, or asked when the
        run was here before."""
        request = pending(self._run)
        if request and request.asked not in {t["asked"] for t in self._taken_up}:
            if request.stage == stage:
                self._keep({"stage": stage, "step": step, "asked": request.asked})
            else:
                log.warning("asked to end stage %s, but the run is %s: nothing is done", request.stage,
                            f"in stage {stage}" if stage else "over")
        if request:
            with writing(file := _pending(self._run)):
                file.unlink()
        return any(t["stage"] == stage and t["step"] == step for t in self._taken_up)

    def _keep(self, taken: dict[str, Any]) -> None:
        """On the disk before anything follows from it."""
        self._taken_up.append(taken)
        write_text(_taken_up(self._run), "".join(json.dumps(t) + "\n" for t in self._taken_up))


def ask(run: Path, stage: str) -> None:
    """Leave a request to end a stage."""
    write_json(_pending(run), asdict(Request(stage, datetime.now(UTC).isoformat())))


def pending(run: Path) -> Request | None:
    """A request that the run has not taken up yet."""
    try:
        text = _read(file := _pending(run))
    except FileNotFoundError:
        return None
    return Request(**_parse(text, str(file), {"stage": str, "asked": str}))


def _pending(run: Path) -> Path:
    return run / "stage.request"


def _taken_up(run: Path) -> Path:
    return run / "stages.jsonl"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{file}: cannot be read: {e}; make it readable for the run, or remove it") from None


def _parse(text: str, where: str, fields: dict[str, type]) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as e:
        raise UserError(f"{where}: not valid JSON: {e}; `srpo stage` writes it, remove what was changed") from None
    if not isinstance(value, dict) or {k: type(v) for k, v in value.items()} != fields:
        raise UserError(f"{where}: expected {', '.join(fields)}, found {text.strip()!r}; `srpo stage` writes it, "
                        "remove what was changed")
    return value
