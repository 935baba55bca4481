"""The algorithm. One process a device; every rank runs these lines, and rank 0 decides and writes.

A step: the curriculum names the prompts, vLLM samples a group of responses to each on the trainer's own weights, the
graders reward them, the ledger records them, advantages are taken within each group, and Megatron updates the policy.
An epoch later the prompts that the policy has mastered are gone (history resampling); when the reward stops growing
the next stage begins.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from srpo import config as configuration
from srpo import folder, preflight
from srpo import samples as stored
from srpo.balance import assign, expected_lengths
from srpo.batch import MicroBatch, Sample, attention_cost, normalizer, pack, split
from srpo.comm import all_gather, broadcast, join
from srpo.config import Config
from srpo.control.by_hand import ByHand
from srpo.control.curriculum import Curriculum, StepPlan
from srpo.control.ledger import Ledger, RolloutRow
from srpo.data.prompts import Tokenizer
from srpo.data.schema import Problem, check_disjoint, questions, read_problems
from srpo.errors import UserError
from srpo.groups import Group, Groups, Rollouts, merge, quotas
from srpo.megatron import checkpoint
from srpo.megatron.step import Trainer, init_device, init_distributed
from srpo.metrics import Monitor
from srpo.rewards.compose import Graded, Graders, Response, check_problems
from srpo.rewards.format import unanswered
from srpo.statistics import (
    Update,
    advantages,
    average_at_k,
    check_canary,
    check_graders,
    names_of,
    of_all_replicas,
    step_metrics,
    update_statistics,
)
from srpo.stragglers import Stragglers
from srpo.warm_start import warm_start
from srpo.watchdog import Watchdog

log = logging.getLogger(__name__)

T = TypeVar("T")


def train(config: Config) -> None:
    """Run, or resume, what `config` describes, to its end. Every rank calls it."""
    watchdog = Watchdog(Path(config.run) / "stacks")
    init_device()
    with watchdog.guard():
        watchdog.begin(*join())
        preflight.check(config)
        init_distributed(config.parallel.tensor, config.parallel.pipeline)
        run = Run(config)
        run.train(watchdog)
        run.close()
        watchdog.close()
        dist.barrier()  # the process group itself is vLLM's to destroy, when the interpreter exits


class Run:
    """Everything a run holds: the policy, its rollout engine, graders, the ledger and the curriculum on rank 0."""

    def __init__(self, config: Config):
        self.config = config
        self.rank = dist.get_rank()
        self.replicas, self.replica = dist.get_world_size() // config.parallel.ranks, self.rank // config.parallel.ranks
        self.folder = Path(config.run)
        if self.rank == 0:
            self.lock = folder.claim(self.folder)
            self.ledger = Ledger(self.folder / "ledger.sqlite")
            _check_resumable(self.folder, self.ledger)
        dist.barrier()
        self.monitor = Monitor(self.folder, config, self.rank)
        self.tokenizer = Tokenizer(config.model.path, config.data.template, config.data.max_prompt_tokens,
                                   config.data.overlong)
        problems = read_problems(config.data.train)
        self.held_out = read_problems(config.data.eval)
        self.files = {p.id: name for file, name in names_of(config.data.eval).items() for p in read_problems([file])}
        check_disjoint(problems, self.held_out)
        self.prompts = self.tokenizer.prompts([*problems, *self.held_out])
        problems, self.held_out = ([p for p in ps if p.id in self.prompts] for ps in (problems, self.held_out))
        self.problems = {p.id: p for p in [*problems, *self.held_out]}
        check_problems([*problems, *self.held_out], config.reward.custom)
        self.leads = self.rank % config.rollout_ranks == 0
        if self.leads:
            style = configuration.answer_style(config.reward.style, config.data.template)
            self.graders = Graders(config.reward.model_copy(update={"style": style}),
                                   config.rollout.max_response_tokens, _workers(config))
        if self.rank == 0:
            self.curriculum = Curriculum({p.id: p.domain for p in problems}, config.stages, config.resample,
                                         config.batch.prompts, config.seed, self.ledger,
                                         {p.id: p.difficulty for p in problems if p.difficulty},
                                         config.rollout.oversample, ByHand(self.folder),
                                         {p.id: p.pass_rate for p in problems if p.pass_rate is not None},
                                         questions(problems))
        self.stragglers = Stragglers(config.parallel.ranks)
        self.checkpoints = checkpoint.Checkpointer(self.folder / "checkpoints", config.checkpoint.keep)
        self.trainer = self._policy()
        self.reports = self.trainer.is_last_stage and self.rank % config.parallel.tensor == 0
        self.warned = False
        self.begun: dict[str, Group] = {}  # what the last step left of groups that the next goes on with
        self.step_done = self._restore()
        self.saved = time.monotonic()
        if self.rank == 0:
            folder.record(self.folder / "config.yaml", config)

    # -- the algorithm ----------------------------------------------------------------------------------------------

    def train(self, watchdog: Watchdog) -> None:
        plan = self.next_plan()
        if plan:
            self.start()
            watchdog.arm(self.config.parallel.timeout)
        while plan:
            metrics = self.step(plan)
            upcoming = self.next_plan()
            if upcoming is None or _due(plan.step, self.config.eval.every):
                metrics |= self.evaluate(plan.step)
            self.monitor.log(metrics)
            if upcoming is None or self.checkpoint_due(plan.step):
                self.save(plan.step)
            self.checkpoints.poll()
            if upcoming and watchdog.stop_requested():
                self.save(plan.step)
                self.checkpoints.poll(blocking=True)
                self.monitor.note(f"{self.folder}: stopped after step {plan.step}; the same command resumes it")
                return
            plan = upcoming
        self.checkpoints.poll(blocking=True)
        if not broadcast((self.folder / "hf").exists()):
            self.trainer.export_hf(self.folder / "hf")
        self.monitor.note(f"{self.folder}: finished; the model is in {self.folder / 'hf'}")

    def start(self) -> None:
        """Bring up vLLM; in a fresh run, take the score before the first step."""
        from srpo.rollout.engine import RolloutEngine  # takes seconds to import: first let bad input speak

        if self.rank == 0:
            shutil.rmtree(self.folder / "hf", ignore_errors=True)  # of a finished run that has been made longer
        self.trainer.offload()  # vLLM allocates its KV cache
        self.engine = RolloutEngine(self.config, self.trainer, self.tokenizer)
        self.monitor.note(self.engine.weights.summary)
        self.monitor.note(self.engine.summary)
        if self.step_done is None:
            self.monitor.log({"step": 0, **self.evaluate(0)})
            self.save(0)
            self.checkpoints.poll(blocking=True)  # no step without a checkpoint before it: see _check_resumable

    def next_plan(self) -> StepPlan | None:
        return broadcast(self.curriculum.next() if self.rank == 0 else None)

    def step(self, plan: StepPlan) -> dict[str, Any]:
        """One SRPO step; returns its metrics."""
        rollouts = self.roll_out(plan)
        while more := self.refill(plan, rollouts):  # with dynamic sampling
            plan = more
            rollouts += self.roll_out(plan)
        self.engine.sleep()
        chosen = broadcast(self.record(plan, rollouts) if self.rank == 0 else [])

        advantage = advantages(rollouts.graded, [s.truncated for s in rollouts.samples], self.config.batch.samples,
                               self.config.algorithm)
        trained = rollouts.only(chosen)
        with self.monitor.phase("update"):
            update = self.update(plan.step, trained.problems, trained.samples,
                                 [advantage[i] for i in rollouts.members(chosen)])
            self.trainer.synchronize()  # or the optimizer's time would be that of the weight sync
        self.trainer.offload()
        with self.monitor.phase("sync"):
            self.engine.sync()
        metrics = {"step": plan.step, "epoch": plan.epoch, "stage": plan.stage}
        own = self.monitor.own_times()
        times = of_all_replicas(self.monitor.times(), all_gather(own["rollout"]))
        metrics |= step_metrics(rollouts.problems, rollouts.samples, rollouts.graded, advantage, update, times,
                                [s for group in self.begun.values() for s in group.values()])
        metrics |= {"optimizer/lr": self.lr(plan.step), "time/checkpoint": self.monitor.spent("checkpoint"),
                    "rollout/rounds": plan.rounds,
                    "rollout/discarded": 1 - len(trained.samples) / len(rollouts.samples)}
        metrics |= self.stragglers.observe(own)
        metrics |= {"weights/aliased_bytes": self.engine.weights.aliased_bytes,
                    "weights/moved_bytes": self.engine.weights.moved_bytes}
        return metrics

    def roll_out(self, plan: StepPlan) -> Rollouts:
        """The plan's last round: responses to the prompts that the earlier ones did not have, and their grades."""
        prompts = plan.prompt_ids[plan.done:]
        with self.monitor.phase("rollout"):
            groups, left = self.sample(prompts, plan.lengths[plan.done:], plan.step, self.config.batch.samples,
                                       self.config.rollout.temperature, plan.finish - plan.done, plan.begun,
                                       plan.rounds)
        with self.monitor.phase("reward"):
            rollouts = self.grades(prompts, groups)
            self.begun = merge(all_gather(self.portion(left)))
        return rollouts

    def refill(self, plan: StepPlan, rollouts: Rollouts) -> StepPlan | None:
        """The plan with another round, where the sampler wants one and the epoch has prompts for it.

        Graders are looked at first: while they fail, no group is mixed, and dynamic sampling goes on to its last round.
        """
        if self.rank == 0:
            check_graders(rollouts.problems, rollouts.graded, plan.step)
        return broadcast(self.curriculum.refill(plan, _rows(plan, rollouts)) if self.rank == 0 else None)

    def record(self, plan: StepPlan, rollouts: Rollouts) -> list[int]:
        """On rank 0: write the rollouts to the ledger; which of their groups the update uses."""
        rows = _rows(plan, rollouts)
        chosen = self.curriculum.record(plan, rows)
        if not self.warned and not any(g.answered for g in rollouts.graded):
            log.warning("step %d: %s", plan.step, unanswered(self.config))
            self.warned = True
        self.store(rows, rollouts.samples, rollouts.graded)
        return chosen

    def sample(self, prompt_ids: list[str], lengths: Sequence[float | None], step: int, samples: int,
               temperature: float, finish: int, begun: int = 0, round: int = 1
               ) -> tuple[dict[str, list[Sample]], dict[str, Group]]:
        """This vLLM replica's share of `finish` groups, and what it leaves of the others (rollout.oversample).

        Replicas are balanced by `lengths`, what responses had in the past. The first `begun` prompts go on from where
        the last step left them. The graders get each response as soon as it is finished. vLLM stays awake.
        """
        expected = expected_lengths(lengths, [len(self.prompts[i]) for i in prompt_ids])
        shares = assign(expected, self.engine.replicas)
        share = [prompt_ids[i] for i in sorted(shares[self.engine.replica], key=lambda i: i >= begun)]
        groups = Groups(share, samples, quotas([len(s) for s in shares], finish)[self.engine.replica],
                        {i: self.begun[i] for i in prompt_ids[:begun] if i in share})
        self.trainer.offload()  # where the step before did not, or a checkpoint brought it back
        self.engine.wake()
        for finished in self.engine.generate({i: self.prompts[i] for i in share}, step=step, samples=samples,
                                             temperature=temperature, begun=groups.begun, round=round):
            groups.add(finished)
            if self.leads:
                self.graders.submit({key: Response(self.problems[key[0]], self.tokenizer.text(s.tokens.tolist()),
                                                   len(s.tokens), s.truncated) for key, s in finished.items()})
            if groups.enough:
                break
        return groups.chosen(), groups.left(self.engine.interrupt())

    def grades(self, prompt_ids: list[str], groups: dict[str, list[Sample]]) -> Rollouts:
        """Wait for the grades of this vLLM replica's groups, then exchange: the problems whose groups are complete, in
        the prompts' order, with all their samples and grades."""
        grades = {}
        if self.leads:
            graded = self.graders.collect()
            grades = {i: [graded[i, j] for j in range(len(group))] for i, group in groups.items()}
        parts = all_gather((self.portion(groups), grades))
        samples, grades = merge([sent for sent, _ in parts]), merge([sent for _, sent in parts])
        complete = [i for i in prompt_ids if i in grades]
        return Rollouts([self.problems[i] for i in complete], [s for i in complete for s in samples[i]],
                        [g for i in complete for g in grades[i]])

    def portion(self, groups: dict[str, T]) -> dict[str, T]:
        """This rank's part of what its whole vLLM replica has: they share the sending, gigabytes of long responses."""
        return dict(islice(groups.items(), self.rank % self.config.rollout_ranks, None, self.config.rollout_ranks))

    def update(self, step: int, problems: list[Problem], samples: list[Sample], advantage: list[float]) -> Update:
        """`batch.updates` optimizer steps on the step's samples; the canary is heeded before the first.

        Responses without an advantage, half of them in mid-training, have no gradient unless the loss has other terms.
        They only pass forward: entropy, KL and the canary are those of all responses.
        """
        c = self.config
        pieces = split(len(samples), c.batch.updates)
        regularized = bool(c.algorithm.kl_coef or c.algorithm.entropy_coef)
        learn = [self.pack(samples, advantage, [i for i in p if regularized or advantage[i]]) for p in pieces]
        watch = [self.pack(samples, advantage, rest)
                 if (rest := [i for i in p if not (regularized or advantage[i])]) else [] for p in pieces]
        self.behaviour(list(chain(*learn)), list(chain(*watch)))
        total = Update()
        for piece, learning, watching in zip(pieces, learn, watch, strict=True):
            count = normalizer(samples, piece, c.algorithm.aggregate, c.rollout.max_response_tokens)
            metrics = self.trainer.forward(watching, count) if watching else []
            metrics = self.trainer.forward_backward(learning, count) + metrics
            part = update_statistics(metrics, learning + watching) if self.reports else Update()
            part = Update.merge(all_gather(part))
            if piece.start == 0:
                check_canary(part, step, [p.id for p in problems], c.batch.samples, c.rollout.canary)
            else:  # the policy has moved on from the one that sampled
                part.diffs = {}
            part.grad_norm = self.trainer.optimizer_step(self.lr(step))
            total = Update.merge([total, part])
        return total

    def lr(self, step: int) -> float:
        return self.config.optimizer.lr * min(1.0, step / max(1, self.config.optimizer.warmup))

    def pack(self, samples: list[Sample], advantage: list[float], indices: list[int]) -> list[MicroBatch]:
        """This rank's micro-batches of some of the step's samples."""
        batch = self.config.batch
        return pack(samples, advantage, indices, sequences=batch.micro_batch, tokens=batch.micro_batch_tokens,
                    attention=attention_cost(self.trainer.hf), rank=self.replica, ranks=self.replicas,
                    multiple=self.config.parallel.tensor)

    def behaviour(self, learning: list[MicroBatch], watching: list[MicroBatch]) -> None:
        """Fill in the log-probs that the loss compares with: the sampling policy's, and the reference's for KL."""
        algorithm = self.config.algorithm
        if self.config.batch.updates > 1 and algorithm.old_logprobs == "trainer":
            for batch, logprobs in zip(learning, self.trainer.logprobs(learning) or [], strict=False):
                batch.old_logprobs = logprobs
        if algorithm.kl:
            everything = learning + watching
            with self.trainer.reference():
                for batch, logprobs in zip(everything, self.trainer.logprobs(everything) or [], strict=False):
                    batch.ref_logprobs = logprobs

    def evaluate(self, step: int) -> dict[str, float | None]:
        """avg@k on the held-out problems."""
        if not self.held_out:
            return {}
        with self.monitor.phase("evaluation"):
            ids = [p.id for p in self.held_out]
            groups, _ = self.sample(ids, [None] * len(ids), -1 - step, self.config.eval.samples,
                                    self.config.eval.temperature, finish=len(ids))
            self.engine.sleep()
            rollouts = self.grades(ids, groups)
        return {**average_at_k(rollouts.problems, rollouts.graded, self.files),
                "time/evaluation": self.monitor.spent("evaluation")}

    def store(self, rows: list[RolloutRow], samples: list[Sample], graded: list[Graded]) -> None:
        """Write logging.responses of the step's responses to RUN/samples."""
        count, step = self.config.logging.responses, rows[0].step
        if not count:
            return
        drawn = []
        for i in stored.draw(len(rows), count, self.config.seed, step):
            row, sample, grade = rows[i], samples[i], graded[i]
            drawn.append(stored.StoredResponse(
                step, row.epoch, row.stage, row.prompt_id, row.sample, row.domain,
                self.tokenizer.decode(sample.prompt_tokens.tolist()), self.tokenizer.text(sample.tokens.tolist()),
                grade.correct, grade.reward, grade.parts, grade.reason, row.tokens, row.truncated, grade.failed))
        stored.write(self.folder, step, drawn)

    # -- state ------------------------------------------------------------------------------------------------------

    def _policy(self) -> Trainer:
        """The trainer with the weights that reinforcement learning starts from."""
        base = self.config.model.path
        trainer = Trainer(self.config, base)
        if self.config.warm_start:
            warm = self.folder / "warm"
            if not broadcast(warm.exists()):
                trainer.load_hf(base)
                with self.monitor.phase("warm start"):
                    warm_start(self.config, self.config.warm_start, trainer, self.tokenizer, rank=self.replica,
                               ranks=self.replicas)
                trainer.export_hf(warm)
                trainer.reset_optimizer()
            base = str(warm)
        trainer.load_hf(base)
        if self.config.algorithm.kl:
            trainer.snapshot_reference()
        return trainer

    def _restore(self) -> int | None:
        """Go back to the latest checkpoint: weights, optimizer, curriculum, ledger, metrics. None: a fresh run."""
        saved = self.checkpoints.load(self.trainer)
        step, state = saved if saved else (-1, None)
        responses = state.get("responses", {}) if state else {}  # older checkpoints have none
        if self.rank == 0:
            if state and responses:
                _check_begun(state, self.config)
            self.curriculum.load_state_dict(state)
            stored.forget(self.folder, step)
            if self.prompts.dropped:
                log.warning(self.prompts.dropped)
                if not saved:
                    self.ledger.event(0, "overlong", self.prompts.dropped)
            for damage in self.checkpoints.damaged:
                self.ledger.event(step, "damaged", damage)
            if saved:
                log.info("resuming %s after step %d", self.folder, step)
        dist.barrier()  # rank 0 has found the data, and so these prompts, unchanged
        self.begun = {i: {int(j): Sample.from_state(self.prompts[i], s) for j, s in group.items()}
                      for i, group in responses.items()}
        self.monitor.resume(step)
        return step if saved else None

    def checkpoint_due(self, step: int) -> bool:
        every, minutes = self.config.checkpoint.every, self.config.checkpoint.minutes
        late = minutes is not None and time.monotonic() - self.saved >= 60 * minutes
        return broadcast(_due(step, every) or late)

    def save(self, step: int) -> None:
        self.saved = time.monotonic()
        state = {}
        if self.rank == 0:
            state = self.curriculum.state_dict()
            begun = {i: {j: s.state() for j, s in self.begun[i].items()} for i in state["begun"]}
            state |= {"responses": begun, "samples": self.config.batch.samples}
        with self.monitor.phase("checkpoint"):
            self.checkpoints.save(step, self.trainer, state)

    def close(self) -> None:
        if self.leads:
            self.graders.close()
        self.monitor.close()


def export(run: Path, directory: Path) -> None:
    """Write the latest checkpoint of a run as a Hugging Face directory. In one process, whatever the run's topology."""
    config = configuration.load(run / "config.yaml")
    checkpoint.export(config, run / "checkpoints", config.model.path, directory)
    dist.destroy_process_group()


def _check_resumable(run: Path, ledger: Ledger) -> None:
    """Raise UserError where a run has results but no checkpoint: beginning again would delete them."""
    if checkpoint.latest(run / "checkpoints"):
        return
    steps = ledger.position()["steps"]
    held = [f"{steps} steps in its ledger"] * bool(steps) + ["a finished model in hf/"] * (run / "hf").exists()
    if held:
        raise UserError(f"run = {str(run)!r}: holds {' and '.join(held)}, but no checkpoint to go on from, and to "
                        "begin again would delete them; put its checkpoints/ back, or choose another run folder (or "
                        "remove this one)")


def _check_begun(state: dict[str, Any], config: Config) -> None:
    """Raise UserError where the groups that were begun (rollout.oversample) cannot go on with these settings."""
    way_out = "restore it, or choose another run folder"
    began = state.get("samples", config.batch.samples)  # older checkpoints do not say
    if began != config.batch.samples:
        raise UserError(f"batch.samples = {config.batch.samples}: the checkpoint holds groups of {began} that were "
                        f"begun (rollout.oversample); {way_out}")
    if config.algorithm.tis_cap is None:
        raise UserError("algorithm.tis_cap: required, also with rollout.oversample = 1: the checkpoint holds groups "
                        f"that earlier policies began; {way_out}")
    limit = config.rollout.max_response_tokens
    responses = [Sample.from_state([], s) for group in state["responses"].values() for s in group.values()]
    longest = max((len(s.tokens) + (not s.finished) for s in responses), default=0)
    if longest > limit:
        raise UserError(f"rollout.max_response_tokens = {limit}: the checkpoint holds responses that were begun "
                        f"(rollout.oversample) and need at least {longest}; {way_out}")


def _rows(plan: StepPlan, rollouts: Rollouts) -> list[RolloutRow]:
    group = len(rollouts.samples) // len(rollouts.problems)
    rows = []
    for i, (s, g) in enumerate(zip(rollouts.samples, rollouts.graded, strict=True)):
        p = rollouts.problems[i // group]
        rows.append(RolloutRow(plan.epoch, plan.step, plan.stage, p.id, i % group, p.domain, g.correct, g.reward,
                               len(s.tokens), s.truncated))
    return rows


def _workers(config: Config) -> int:
    """Grader processes of one vLLM replica: its share of this machine's cores."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    leaders = max(1, ranks // config.rollout_ranks)
    return config.reward.workers or max(1, len(os.sched_getaffinity(0)) // leaders)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
