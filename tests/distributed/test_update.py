"""An update, all of it: the weights that the formulas give, written out for transformers; and with responses that teach
nothing the same gradients and metrics as if all had taken part."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import Case
from megatron.core import parallel_state as mpu
from models import build, config, full_tensors, make_model, make_samples, saved_model
from transformers import PreTrainedModel

from srpo.batch import Sample
from srpo.data.schema import Problem
from srpo.errors import Fault, UserError
from srpo.groups import Rollouts
from srpo.megatron.step import Trainer
from srpo.rewards.compose import BROKEN, Graded
from srpo.statistics import Update
from srpo.train import Run, _check_begun

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


AGGREGATES = ("token", "sequence", "constant")
TEMPERATURE, LONGEST = 0.7, 64
FORMULAS: dict[str, tuple[int, dict[str, Any]]] = {
    "on-policy": (1, {"tis_cap": 1.3, "kl": "k2", "kl_coef": 0.1}),
    "clipped": (2, {"tis_cap": 1.3, "kl": "k3", "kl_coef": 0.1, "entropy_coef": 0.05, "dual_clip": 1.5,
                    "clip_low": 0.01, "clip_high": 0.02}),
    "reinforce": (2, {"tis_cap": 1.3, "old_logprobs": "rollout"}),
}
"""Updates of a step, and algorithm."""


class Telling(float):
    """An advantage that takes part whatever it is."""

    def __bool__(self) -> bool:
        return True


def measure(name: str) -> dict[str, float]:
    layout, loss, *aggregate = name.split("/")
    return against_formulas(layout, loss, aggregate[0]) if aggregate else against_skipping(layout, loss)


def against_formulas(layout: str, loss: str, aggregate: str) -> dict[str, float]:
    """How far the weights of an update, and its last gradient's norm, are from the reference's."""
    path, (updates, algorithm) = saved_model("qwen2-tied"), FORMULAS[loss]
    samples, advantage = _batch(nothing=False)
    trainer = build(path, batch={"prompts": COUNT // GROUP, "samples": GROUP, "micro_batch": 2, "updates": updates},
                    rollout={"canary": 100.0, "temperature": TEMPERATURE, "max_response_tokens": LONGEST},
                    algorithm={"aggregate": aggregate} | algorithm, optimizer={"lr": 1.0, "eps": 1.0},
                    **LAYOUTS[layout])
    _moved(trainer, path)
    update = Run.update(_run(trainer), 1, _problems(), samples, advantage)
    trainer.wait_parameters()
    found = full_tensors(trainer.shards)
    wanted, norm = expected(samples, advantage, updates, {"aggregate": aggregate} | algorithm)
    return {"far weights": max(float((found[n] - p).abs().max()) for n, p in wanted.named_parameters()),
            "far norm": abs(update.grad_norm / norm - 1)}


def expected(samples: list[Sample], advantage: list[float], updates: int, algorithm: dict[str, Any]
             ) -> tuple[PreTrainedModel, float]:
    """The model after the update, exact next to float32, and the last gradient's norm."""
    reference, model = make_model("qwen2-tied").double(), make_model("qwen2-tied").double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
        ref, old = ([_logprobs(m, s)[0] for s in samples] for m in (reference, model))
    adam = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), eps=1.0, weight_decay=0.0)
    size = COUNT // updates
    for piece in (range(start, start + size) for start in range(0, COUNT, size)):
        total = torch.zeros((), dtype=torch.float64)
        for i in piece:
            logprobs, entropy = _logprobs(model, samples[i])
            before = logprobs.detach() if "old_logprobs" in algorithm else old[i]
            ratio, a = (logprobs - before).exp(), advantage[i]
            gain = torch.minimum(ratio * a, ratio.clamp(0.99, 1.02) * a)
            if a < 0:
                gain = gain.clamp(min=1.5 * a)
            weight = (before - torch.from_numpy(samples[i].rollout_logprobs)).exp().clamp(max=1.3)
            x = logprobs - ref[i]
            kl = {"k2": x.square() / 2, "k3": torch.exp(-x) - 1 + x}.get(algorithm.get("kl", ""), 0 * x)
            loss = 0.1 * kl - weight * gain - algorithm.get("entropy_coef", 0.0) * entropy
            tokens = {"token": sum(len(samples[j].tokens) for j in piece), "sequence": size * len(loss),
                      "constant": size * LONGEST}
            total = total + loss.sum() / tokens[algorithm["aggregate"]]
        adam.zero_grad()
        total.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        adam.step()
    return model, norm


def _logprobs(model: PreTrainedModel, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the response's tokens, and the entropies there."""
    ids = torch.from_numpy(np.concatenate([sample.prompt_tokens, sample.tokens]))[None]
    every = (model(ids).logits[0, len(sample.prompt_tokens) - 1 : -1] / TEMPERATURE).log_softmax(-1)
    return every.gather(1, torch.from_numpy(sample.tokens)[:, None])[:, 0], -(every.exp() * every).sum(-1)


def against_skipping(layout: str, loss: str) -> dict[str, float]:
    """How far the weights, metrics and forward passes of an update are from those of one that skips nothing."""
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
    _moved(trainer, path)
    watched = 0

    def forward(micro_batches: list, normalizer: float) -> list:
        nonlocal watched
        watched += sum(int((b.sample_index >= 0).sum()) for b in micro_batches)
        return type(trainer).forward(trainer, micro_batches, normalizer)

    if not skip:
        advantage = [Telling(a) for a in advantage]
    with mock.patch.object(trainer, "forward", forward):
        update = Run.update(_run(trainer), 1, _problems(), samples, advantage)
    trainer.wait_parameters()
    return update, [p.detach().clone() for p in trainer.model.parameters()], watched


def _moved(trainer: Trainer, path: Path) -> None:
    """The weights there, times 1.01: the reference policy, if there is one, is another than the policy."""
    trainer.load_hf(path)
    if trainer.config.algorithm.kl:
        trainer.snapshot_reference()
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.mul_(1.01)
    trainer.optimizer.reload_model_params()


def _run(trainer: Trainer) -> Any:
    """What Run.update needs of a run."""
    run: Any = SimpleNamespace(
        config=trainer.config, trainer=trainer, replica=mpu.get_data_parallel_rank(),
        replicas=mpu.get_data_parallel_world_size(),
        reports=trainer.is_last_stage and dist.get_rank() % trainer.config.parallel.tensor == 0)
    run.pack = lambda *args: Run.pack(run, *args)
    run.behaviour = lambda *args: Run.behaviour(run, *args)
    run.lr = lambda *args: Run.lr(run, *args)
    return run


def _problems() -> list[Problem]:
    return [Problem(str(i), "math", "?", answer="1") for i in range(COUNT // GROUP)]


CASES = [Case(2, f"{layout}/{loss}") for layout in LAYOUTS for loss in LOSSES
         if layout == "dp2" or loss in ("one", "kl")]


WRITTEN_OUT = [Case(2, f"{layout}/{loss}/{aggregate}") for layout in LAYOUTS for loss in FORMULAS
               for aggregate in AGGREGATES
               if (layout == "dp2") + (loss == "clipped") + (aggregate == "token") >= 2]


@pytest.mark.parametrize("measured", WRITTEN_OUT, indirect=True, ids=str)
def test_an_update_is_that_of_the_formulas(measured: dict[str, float]):
    assert measured["far weights"] < 1e-6 and measured["far norm"] < 1e-5


@pytest.mark.parametrize("measured", CASES, indirect=True, ids=str)
def test_responses_without_advantage_only_pass_forward(measured: dict[str, float], request: pytest.FixtureRequest):
    loss = request.node.callspec.params["measured"].name.split("/")[1]
    assert max(v for k, v in measured.items() if k.startswith("far")) < 2e-5
    assert (measured["watched"] > 0) == (loss not in ("kl", "entropy"))
    assert measured["worst"] == 5


@pytest.mark.parametrize(("settings", "message"), [
    ({}, None),
    ({"batch": {"samples": 2}}, "batch.samples = 2: the checkpoint holds groups of 4 that were begun"),
    ({"algorithm": {}}, "algorithm.tis_cap: required, also with rollout.oversample = 1: the checkpoint holds groups"),
    ({"rollout": {"max_response_tokens": 8}},
     r"rollout.max_response_tokens = 8: the checkpoint .* need at least 9; restore it, or choose another run folder"),
], ids=["goes on", "another size", "unweighted", "too long"])
def test_begun_groups_that_cannot_go_on_are_refused(settings: dict[str, Any], message: str | None) -> None:
    begun = {0: _sample(8, finished=False), 1: _sample(9), 3: _sample(0, finished=False)}
    state = {"samples": 4, "responses": {"a": {j: s.state() for j, s in begun.items()}, "b": {}}}
    sections: dict[str, Any] = {"batch": {"samples": 4}, "algorithm": {"tis_cap": 2.0},
                                "rollout": {"max_response_tokens": 9}}
    with pytest.raises(UserError, match=message) if message else nullcontext():
        _check_begun(state, config(Path("model"), **sections | settings))


def test_a_checkpoint_holds_the_groups_that_go_on_and_not_those_of_a_stage_that_ended() -> None:
    saved: list[dict[str, Any]] = []
    run: Any = SimpleNamespace(
        rank=0, config=config(Path("model")), trainer=None, begun={"a": {0: _sample(1)}, "b": {}, "c": {0: _sample(2)}},
        curriculum=SimpleNamespace(state_dict=lambda: {"begun": ["c", "b"]}),
        checkpoints=SimpleNamespace(save=lambda step, trainer, state: saved.append(state)),
        monitor=SimpleNamespace(phase=lambda name: nullcontext()))
    Run.save(run, 3)
    assert {i: list(group) for i, group in saved[0]["responses"].items()} == {"c": [0], "b": []}


def _sample(tokens: int, finished: bool = True) -> Sample:
    return Sample(np.array([1]), np.ones(tokens, np.int32), np.zeros(tokens, np.float32), finished=finished)


def test_graders_that_fail_end_a_step_before_it_goes_on() -> None:
    """Neither is there another round of dynamic sampling, nor anything in the ledger."""
    problems = [Problem(str(i), "math", "?", answer="1") for i in range(BROKEN)]
    rollouts = Rollouts(problems, [], [Graded(0.0, 0.0, {}, "math: hung", failed=True)] * 2 * BROKEN)
    run: Any = SimpleNamespace(rank=0, curriculum=SimpleNamespace())
    plan: Any = SimpleNamespace(step=3)
    with pytest.raises(Fault, match="step 3: none of the 16 responses to math problems could be graded: math: hung"):
        Run.refill(run, plan, rollouts)
