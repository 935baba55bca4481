"""An update with responses that teach nothing: the same gradients and metrics as if all had taken part."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import Case
from megatron.core import parallel_state as mpu
from models import build, make_samples, saved_model

from srpo.batch import Sample
from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.statistics import Update
from srpo.train import Run, _check_samples

COUNT, GROUP = 16, 4
LAYOUTS: dict[str, dict[str, Any]] = {"dp2": {}, "tp2": {"tensor": 2}, "pp2": {"pipeline": 2},
                                     "dp2-overlap": {"parallel": {"overlap": True}}}
LOSSES: dict[str, dict[str, Any]] = {
    "one": {},
    "tokens": {"batch": {"micro_batch_tokens": 40}},
    "two updates": {"batch": {"updates": 2}},
    "watched kl": {"algorithm": {"kl": "k3"}},
    "kl": {"algorithm": {"kl": "k3", "kl_coef": 0.1}},
    "entropy": {"algorithm": {"entropy_coef": 0.1}},
    "none": {},
}


class Telling(float):
    """An advantage that takes part whatever it is."""

    def __bool__(self) -> bool:
        return True


def measure(name: str) -> dict[str, float]:
    """How far the weights, metrics and forward passes of an update are from those of one that skips nothing."""
    layout, loss = name.split("/")
    samples, advantage = _batch(nothing=loss == "none")
    found = [_update(layout, loss, samples, advantage, skip) for skip in (True, False)]
    (update, weights, watched), (expected, wanted, _) = found
    far = {f"far {f.name}": abs(getattr(update, f.name) - getattr(expected, f.name))
           / max(1, abs(getattr(expected, f.name))) for f in fields(Update) if f.name not in ("processed", "diffs")}
    assert update.diffs.keys() == expected.diffs.keys()
    far["far diffs"] = max(abs(a.total - expected.diffs[i].total) / max(1, a.total) for i, a in update.diffs.items())
    far["far weights"] = max(float((a - b).abs().max()) for a, b in zip(weights, wanted, strict=True))
    worst = max(update.diffs, key=lambda i: update.diffs[i].largest)
    compared = sum(diff.tokens for diff in update.diffs.values())
    return far | {"watched": float(watched), "worst": float(worst), "compared": float(compared)}


def _batch(nothing: bool) -> tuple[list[Sample], list[float]]:
    """Groups of which the second has no advantages, and the third only one; the worst disagreement is in the second."""
    made, advantage = make_samples(COUNT)
    samples = [Sample(np.array(s.prompt_tokens), np.array(s.tokens), np.full(len(s.tokens), -5.0, np.float32))
               for s in made]
    samples[5].rollout_logprobs[1] = -25.0  # type: ignore[index]
    for i in range(COUNT) if nothing else (4, 5, 6, 7, 8, 9, 11):
        advantage[i] = 0.0
    return samples, advantage


def _update(layout: str, loss: str, samples: list[Sample], advantage: list[float], skip: bool
            ) -> tuple[Update, list[torch.Tensor], int]:
    path = saved_model("qwen2-tied")
    sections = {k: dict(v) for k, v in LOSSES[loss].items()}
    batch = {"prompts": COUNT // GROUP, "samples": GROUP, "micro_batch": 4} | sections.pop("batch", {})
    trainer = build(path, batch=batch, rollout={"canary": 100.0}, data={"train": ["unused"], "max_prompt_tokens": 8},
                    optimizer={"lr": 1.0, "eps": 1.0}, **sections, **LAYOUTS[layout])
    trainer.load_hf(path)
    if "algorithm" in sections and "kl" in sections["algorithm"]:
        trainer.snapshot_reference()
        with torch.no_grad():
            for p in trainer.model.parameters():
                p.mul_(1.01)
        trainer.optimizer.reload_model_params()
    run: Any = SimpleNamespace(
        config=trainer.config, trainer=trainer, replica=mpu.get_data_parallel_rank(),
        replicas=mpu.get_data_parallel_world_size(),
        reports=trainer.is_last_stage and dist.get_rank() % trainer.config.parallel.tensor == 0)
    run.pack = lambda *args: Run.pack(run, *args)
    run.behaviour = lambda *args: Run.behaviour(run, *args)
    run.lr = lambda *args: Run.lr(run, *args)
    watched = 0

    def forward(micro_batches: list, normalizer: float) -> list:
        nonlocal watched
        watched += sum(int((b.sample_index >= 0).sum()) for b in micro_batches)
        return type(trainer).forward(trainer, micro_batches, normalizer)

    if not skip:
        advantage = [Telling(a) for a in advantage]
    problems = [Problem(str(i), "math", "?", answer="1") for i in range(COUNT // GROUP)]
    with mock.patch.object(trainer, "forward", forward):
        update = Run.update(run, 1, problems, samples, advantage)
    trainer.wait_parameters()
    return update, [p.detach().clone() for p in trainer.model.parameters()], watched


CASES = [Case(2, f"{layout}/{loss}") for layout in LAYOUTS for loss in LOSSES
         if layout == "dp2" or loss in ("one", "kl")]


@pytest.mark.parametrize("measured", CASES, indirect=True, ids=str)
def test_responses_without_advantage_only_pass_forward(measured: dict[str, float], request: pytest.FixtureRequest):
    loss = request.node.callspec.params["measured"].name.split("/")[1]
    assert max(v for k, v in measured.items() if k.startswith("far")) < 2e-5
    assert (measured["watched"] > 0) == (loss not in ("kl", "entropy"))
    assert measured["worst"] == 5


def test_begun_groups_of_another_size_are_refused() -> None:
    _check_samples({"samples": 4}, 4)
    with pytest.raises(UserError, match="batch.samples = 2: the checkpoint holds groups of 4 that were begun"):
        _check_samples({"samples": 4}, 2)
