"""Runs without a model: prompts of a hidden difficulty, a policy whose skill grows, and what a real run would leave."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import yaml

from srpo import samples
from srpo.control.ledger import Decision, Ledger, RolloutRow

HOSTILE = ("</script><script>document.title='owned'</script>", "<img src=x onerror=\"document.title='owned'\">",
           "a\u2028b\u2029c", "\ud800 alone", "'\"`\\ ${document.title='owned'}", "<!-- <script>", "]]> &lt;b&gt;")
"""What a policy may write."""
PHRASES = (("Let me check this again.", 0.3), ("Wait, that is not right.", 0.1),
           ("Alternatively, try another way.", 0.2), ("```python\nprint(6 * 7)\n```", 0.05), ("I add them up.", 0.4))
"""What a response may hold, and how likely that is in the first step."""


@dataclass(frozen=True)
class Shape:
    steps: int = 60
    prompts: int = 8
    group: int = 8
    stage_at: int = 25
    per_epoch: int = 6
    stored: int = 16
    response: int = 300
    seed: int = 1
    gain: float = 1.0


def write(folder: Path, shape: Shape | None = None, *, sampler: str = "history", finished: bool = True,
          responses: tuple[str, ...] = ()) -> Path:
    """A run folder: ledger, metrics.jsonl, config.yaml and stored responses. Its first step stores `responses`."""
    shape = shape or Shape()
    rng = random.Random(shape.seed)
    folder.mkdir(parents=True)
    ledger = Ledger(folder / "ledger.sqlite")
    difficulty = {f"{domain}-{i}": rng.gauss(0.0, 1.6) for domain in ("math", "code")
                  for i in range(shape.prompts * shape.per_epoch)}
    present = [p for p in difficulty if p.startswith("math")]
    lines = [{"step": 0, "eval/math": 0.3, "eval/code": 0.35}]
    epoch, order, stage, skill = 1, [], "math", -0.8
    seen: dict[str, list[float]] = {}
    for step in range(1, shape.steps + 1):
        if step == shape.stage_at:
            ledger.event(step - 1, "stage", "math -> both: plateau after 24 steps")
            stage, present = "both", [*present, *(p for p in difficulty if p.startswith("code"))]
            order = []
        if not order:
            if seen:
                present = _close(ledger, step - 1, epoch, stage, seen, present, sampler)
                epoch, seen = epoch + 1, {}
            order = rng.sample(present, len(present))
        chosen, order = order[:shape.prompts], order[shape.prompts:]
        rows = []
        for prompt in chosen:
            domain = prompt.split("-")[0]
            chance = 1 / (1 + math.exp(difficulty[prompt] - skill - 0.4 * (domain == "math")))
            for sample in range(shape.group):
                correct = float(rng.random() < chance)
                length = max(3, int(rng.lognormvariate(0, 0.3) * (60 + 200 * (skill + 1) * (domain == "math"))))
                rows.append(RolloutRow(epoch, step, stage, prompt, sample, domain, correct, correct + 0.1 * chance,
                                       length, length > 1200))
            seen[prompt] = [r.correct for r in rows if r.prompt_id == prompt]
        ledger.append(rows)
        lines.append(_metrics(rows, step, epoch, stage, rng, skill) | (
            {"eval/math": 0.4 + skill / 10, "eval/code": 0.42 + skill / 12} if step % 20 == 0 else {}))
        _store(folder, rows, rng, shape, responses if step == 1 else ())
        skill += shape.gain * 3.2 / shape.steps
    ledger.close()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(yaml.safe_dump(
        {"run": str(folder), "seed": shape.seed, "model": {"path": "models/tiny"}, "resample": {"sampler": sampler},
         "batch": {"prompts": shape.prompts, "samples": shape.group}, "optimizer": {"lr": 1e-6},
         "stages": [{"name": "math", "domains": ["math"]}, {"name": "both", "domains": ["math", "code"]}]}))
    if finished:
        (folder / "hf").mkdir()
    return folder


def _close(ledger: Ledger, step: int, epoch: int, stage: str, seen: dict[str, list[float]], present: list[str],
           sampler: str) -> list[str]:
    mastered = {p for p, group in seen.items() if sampler == "history" and min(group) >= 1}
    ledger.close_epoch(epoch, stage, [Decision(p, "dropped", "all rollouts correct") if p in mastered
                                      else Decision(p, "kept", "not mastered") for p in seen])
    ledger.event(step, "resample", f"epoch {epoch}: {len(seen)} prompts seen, {len(mastered)} dropped, 0 return")
    return [p for p in present if p not in mastered] or present


def _metrics(rows: list[RolloutRow], step: int, epoch: int, stage: str, rng: random.Random, skill: float) -> dict:
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row.prompt_id, []).append(row.reward)
    line = {"step": step, "epoch": epoch, "stage": stage, "reward/mean": fmean(r.reward for r in rows),
            "length/mean": fmean(r.tokens for r in rows), "reward/failed": 0,
            "groups/zero_advantage": fmean(min(g) == max(g) for g in groups.values()),
            "policy/entropy": 0.6 * math.exp(-skill / 3) + rng.gauss(0, 0.01), "policy/clip_frac": 0.01 * rng.random(),
            "policy/kl": 0.0, "grad/norm": 0.5 + 0.1 * rng.random(), "loss/policy": rng.gauss(0, 0.05),
            "rollout/tokens_per_s": 900 + 50 * rng.random(), "train/tokens_per_s": 2500 + 100 * rng.random(),
            "rollout/truncated": fmean(r.truncated for r in rows), "rollout/logprob_diff_mean": 1e-6,
            "rollout/logprob_diff_max": 3e-5 * (1 + rng.random()), "sampler/pool": len(groups)}
    for domain in sorted({r.domain for r in rows}):
        for name, key in (("reward", "reward"), ("accuracy", "correct"), ("length", "tokens")):
            line[f"{name}/{domain}"] = fmean(getattr(r, key) for r in rows if r.domain == domain)
    tokens = sum(r.tokens for r in rows)
    times = {"rollout": tokens / 900, "reward": 0.5, "update": tokens / 2500, "sync": 0.1}
    return line | {f"time/{k}": v for k, v in times.items()} | {"time/step": sum(times.values()) + 0.2}


def _store(folder: Path, rows: list[RolloutRow], rng: random.Random, shape: Shape, first: tuple[str, ...]) -> None:
    drawn = [rows[i] for i in samples.draw(len(rows), shape.stored, shape.seed, rows[0].step)] if shape.stored else []
    stored = []
    for i, row in enumerate(drawn):
        grown = row.step / shape.steps
        text = " ".join(phrase for phrase, chance in PHRASES if rng.random() < chance + 0.5 * grown)
        text = f"{text} {' '.join(str(rng.random()) for _ in range(shape.response // 20))}\nThe answer is {row.tokens}."
        if i < len(first):  # Parquet holds UTF-8, which has no lone surrogates
            text = first[i].encode("utf-8", "replace").decode()
        stored.append(samples.StoredResponse(
            row.step, row.epoch, row.stage, row.prompt_id, row.sample, row.domain, f"Solve {row.prompt_id}.\nAnswer:",
            text, row.correct, row.reward,
            {"accuracy": row.correct, "format": row.reward - row.correct}, "" if row.correct else "expected 7",
            row.tokens, row.truncated, False))
    if stored:
        samples.write(folder, rows[0].step, stored)
