"""A plan as tables."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from srpo.plan import memory
from srpo.plan.command import Plan
from srpo.plan.compare import Comparison
from srpo.plan.hardware import GIB
from srpo.plan.layouts import Candidate
from srpo.plan.reshard import sync
from srpo.terminal import new_table, wide

SHOWN = 10
"""Layouts in the table."""


def show(plan: Plan, command: str) -> None:
    """Print it: whether the configuration fits comes first. `command` trains what was planned."""
    console = wide()
    if plan.verdict:
        console.print(f"{plan.title} {plan.verdict}", style="bold red", highlight=False)
    else:
        assert plan.own
        worst = plan.own.worst
        console.print(f"{plan.title} fits: {worst.name} needs {worst.total / GIB:.1f} GiB of "
                      f"{plan.own.gpu.memory.value:.1f}", style="bold", highlight=False)
    if plan.own:
        console.print(_memory(plan.own))
        host = memory.host(plan.own.job)
        console.print("Host memory a rank, at most: " + ", ".join(f"{k} {v / GIB:.1f} GiB" for k, v in host.items()),
                      highlight=False)
        console.print(_times(plan.own))
        times = plan.own.times
        console.print(f"{times.tokens_per_gpu:,.0f} response tokens/s/GPU; MFU {times.mfu:.0%} in the update, "
                      f"{times.mfu_step:.0%} over the step", highlight=False)
        console.print(_sync(plan.own), highlight=False)
    if plan.layouts:
        console.print(_layouts(plan))
        if plan.verdict or plan.own and plan.layouts[0].times.total < 0.98 * plan.own.times.total:
            console.print(f"The first one: {command} " + " ".join(
                f"{key}={_plain(value)}" for key, value in plan.layouts[0].settings.items()),
                highlight=False, markup=False, soft_wrap=True)  # to be copied
    else:
        console.print(plan.advice, style="bold red", highlight=False)
    if plan.comparison:
        shown = plan.own if plan.own and not plan.verdict else plan.layouts[0]
        console.print(_savings(plan.comparison, plan.oversample, shown))
        console.print(_samplers(plan, plan.comparison))
    console.print(_assumptions(plan))


def _memory(own: Candidate) -> Table:
    heads = (f"{phase.name}\n({phase.moment})" for phase in own.phases)
    table = new_table("Memory of one GPU, GiB", "", *heads, text=("",), min_width=44)
    terms = list(dict.fromkeys(term for phase in own.phases for term in phase.terms))
    for term in terms:
        table.add_row(term, *(f"{p.terms[term] / GIB:.2f}" if term in p.terms else "" for p in own.phases),
                      end_section=term == terms[-1])
    table.add_row("total", *(f"{p.total / GIB:.2f}" for p in own.phases))
    table.add_row("left", *(f"{own.gpu.memory.value - p.total / GIB:.2f}" for p in own.phases))
    return table


def _times(own: Candidate) -> Table:
    times = own.times
    table = new_table("A step, predicted", "phase", "seconds", "share", text=("phase",), min_width=44)
    for name, seconds in times.phases.items():
        if seconds:
            table.add_row(name, f"{seconds:.2f}", f"{seconds / times.total:.1%}")
    table.add_section()
    table.add_row("step", f"{times.total:.1f}", "")
    return table


def _sync(own: Candidate) -> str:
    moved = sync(own.job)
    if own.job.aliased:
        return "A sync moves nothing: vLLM's weights are the trainer's."
    return (f"A sync moves {max(moved.needed) / GIB:.2f} GiB to the rank that lacks most (the lower bound); "
            f"vLLM's own weights take {max(moved.owned) / GIB:.2f} GiB there.")


def _layouts(plan: Plan) -> Table:
    shown = plan.layouts[:SHOWN]
    table = new_table(
        f"Layouts that fit, the fastest first ({len(shown)} of {len(plan.layouts)}), with as much KV cache as there is "
        "room for", "train\nTP x PP", "vLLM\nTP", "recompute", "off-\nload", "micro-batch\ntokens", "KV\nGiB",
        "left\nGiB", "generate\ns", "update\ns", "sync\ns", "step\ns", "tokens\n/s/GPU", "update\nMFU",
        text=("recompute",), box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for c in shown:
        config, t = c.job.config, c.times
        table.add_row(
            f"{c.job.tensor} x {c.job.pipeline}", str(config.rollout_tensor), config.parallel.recompute,
            "yes" if config.parallel.offload else "", f"{config.batch.micro_batch_tokens:,}",
            f"{config.rollout.kv_cache_gib:.3g}", f"{c.spare / GIB:.1f}", f"{t.generation:.1f}",
            f"{t.update + t.scoring + t.reduction + t.optimizer:.1f}", f"{t.sync:.2f}", f"{t.total:.1f}",
            f"{t.tokens_per_gpu:,.0f}", f"{t.mfu:.0%}")
    return table


def _savings(c: Comparison, oversample: float, of: Candidate) -> Table:
    replicas = of.job.replicas
    table = new_table(f"Generation over {replicas} replica{'s' * (replicas > 1)}, replayed", "prompts go to replicas",
                      "seconds", "of random", text=("prompts go to replicas",))
    rows = [("at random", c.random), ("longest first, balanced by expected length (as trained)", c.balanced),
            ("the same, had the lengths been known", c.foreseen), ("if all replicas ended together", c.even)]
    if c.over_sampled is not None:
        rows.append((f"balanced, with rollout.oversample = {oversample:g}", c.over_sampled))
    for name, seconds in rows:
        table.add_row(name, f"{seconds:.1f}", f"{seconds / c.random:.0%}" if c.random else "")
    return table


def _samplers(plan: Plan, c: Comparison) -> Table:
    table = new_table("Samplers on the same groups, replayed", "sampler", "tokens that\nleave after\nthe epoch",
                      "rounds\na step", "groups\na step", "trained on\nall right or\nall wrong",
                      "generation\na step, s", "for a batch\nof others, s", text=("sampler",))
    for s in c.samplers:
        whose = " and ".join(["configured"] * s.configured + ["the run's"] * s.recorded)
        table.add_row(f"{s.sampler}, {whose}" if whose else s.sampler, f"{s.dropped:.0%}", f"{s.rounds:.1f}",
                      f"{s.groups:,.0f}", f"{s.no_advantage:.0%}", f"{s.seconds:.1f}",
                      "-" if s.seconds_for_a_batch is None else f"{s.seconds_for_a_batch:.1f}")
    if plan.recorded:
        had = plan.recorded.sampler
        table.caption = f"Tokens: of epoch {plan.recorded.epoch}. " + (
            f"{plan.recorded.run} sampled with {had.sampler}: what left before is not there." if had else
            f"{plan.recorded.run} has no config.yaml: its sampler is not known.")
    return table


def _assumptions(plan: Plan) -> Table:
    table = new_table("Assumptions", "assumption", "value", "source", "", text=("assumption", "source", ""))
    for a in plan.assumptions:
        table.add_row(a.name, f"{a.value:,.4g} {a.unit}".strip(), a.source, a.note)
    return table


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
