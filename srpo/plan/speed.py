"""How long each phase of a step takes: a roofline of products, memory traffic and messages.

What is counted is what srpo/megatron and vLLM do: unfused element-wise operators as bytes, products and attention as
operations, collectives at the rate of the links they cross. Nothing overlaps unless the code overlaps it. The mean
micro-batch stands for all, and the data-parallel ranks for one another: the trainer balances both.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from srpo.plan import memory
from srpo.plan.hardware import Gpu
from srpo.plan.job import FLOAT32, Job
from srpo.plan.reshard import sync
from srpo.plan.simulate import Decoder, balanced, makespan, over_sampled, pace
from srpo.plan.workload import Workload

ADAMW_PASSES = 24
"""Float32 numbers read or written a weight: gradient scaling, torch's AdamW operator by operator, the copy back."""
ACCUMULATE = 12
"""Bytes a weight and micro-batch to add a bfloat16 gradient to the float32 one: written and read, and the sum's two."""


@dataclass(frozen=True)
class Times:
    """Seconds of the phases of a step, and what was done in it."""

    generation: float
    scoring: float
    update: float
    reduction: float
    """Gradients and parameters between data-parallel ranks, as far as it is not hidden."""
    optimizer: float
    offload: float
    sync: float
    tokens: float
    """Response tokens of the step."""
    gpus: int
    update_flops: float
    """Of the model in the update: 6 a weight and token, the output matrix for response tokens, causal attention."""
    generation_flops: float
    peak: float
    """Flop/s of all GPUs, by the data sheet."""

    @property
    def total(self) -> float:
        return sum(self.phases.values())

    @property
    def phases(self) -> dict[str, float]:
        names = ("generation", "scoring", "update", "reduction", "optimizer", "offload", "sync")
        return {name: getattr(self, name) for name in names}

    @property
    def tokens_per_gpu(self) -> float:
        """Response tokens a second and GPU over the whole step."""
        return self.tokens / self.total / self.gpus

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization of the update alone."""
        return self.update_flops / (self.update + self.reduction + self.optimizer) / self.peak

    @property
    def mfu_step(self) -> float:
        """Of the whole step: generation's forward passes count, recomputation does not."""
        return (self.update_flops + self.generation_flops) / self.total / self.peak


@dataclass(frozen=True)
class Rates:
    """The GPU's, in bytes, flop and seconds."""

    gpu: Gpu

    @property
    def bandwidth(self) -> float:
        return self.gpu.bandwidth.value * 1e12

    @property
    def matmul(self) -> float:
        return self.gpu.matmul.value * 1e12 * self.gpu.layer_matmul.value

    @property
    def host(self) -> float:
        return self.gpu.host.value * 1e9

    def message(self, ranks: int) -> float:
        """Bytes/s of each GPU among `ranks` adjacent ones."""
        return (self.gpu.link if ranks <= self.gpu.node.value else self.gpu.network).value * 1e9

    def data_parallel(self, job: Job) -> float:
        """Bytes/s of one group's ring: replicas are strided by their ranks, and a node's groups share its adapters."""
        model = job.config.parallel.ranks
        node = int(self.gpu.node.value)
        if job.gpus <= node:
            return self.message(job.gpus)
        return self.gpu.network.value * 1e9 * max(1, node // model)


def times(job: Job, gpu: Gpu, work: Workload, generation: float | None = None) -> Times:
    """Of one step over these responses, the last of `work`; `generation`: seconds, where they are known."""
    rates, shape, config = Rates(gpu), job.shape, job.config
    forward, head, backward, exchange = _passes(job, rates, work)
    updates, elements = config.batch.updates, max(job.stages)
    scorings = (updates > 1 and config.algorithm.old_logprobs == "trainer") + bool(config.algorithm.kl)
    adamw = ADAMW_PASSES * FLOAT32 * elements / job.data
    offloaded = memory.optimizer_state(job, elements) if config.parallel.offload else 0
    moved = sync(job)
    block = max(config.parallel.ranks, config.rollout_ranks)
    attention = 2 * work.squares * shape.query * shape.layers
    return Times(
        generation=decode(decoder(job, gpu), job, work) if generation is None else generation,
        scoring=scorings * (forward + head / 3),
        update=forward + head + backward,
        reduction=updates * exchange,
        optimizer=updates * (FLOAT32 * elements + adamw) / rates.bandwidth,  # with the gradients set to zero
        offload=2 * updates * offloaded / rates.host,  # in and out, piece by piece, in each optimizer step
        sync=max(moved.needed) / rates.message(block),
        tokens=work.tokens, gpus=job.gpus,
        update_flops=6 * (shape.matrices * work.read + shape.vocab * shape.hidden * work.tokens) + 3 * attention,
        generation_flops=2 * (shape.matrices + shape.vocab * shape.hidden) * work.tokens + attention,
        peak=gpu.peak.value * 1e12 * job.gpus)


# -- generation -----------------------------------------------------------------------------------------------------


def decoder(job: Job, gpu: Gpu) -> Decoder:
    """Speed of one vLLM replica."""
    rates, shape, tensor = Rates(gpu), job.shape, job.config.rollout_tensor
    ranks, layers = job.config.rollout_ranks, job.shape.layers
    bandwidth = rates.bandwidth * gpu.decode_bandwidth.value
    weights = shape.matrices + shape.vocab * shape.hidden
    messages = 2 * layers * (tensor > 1)
    all_reduce = messages * 2 * (tensor - 1) / tensor * shape.hidden * job.itemsize / rates.message(tensor)
    return Decoder(
        # stages work one after another on a batch, which vLLM divides into as many: as fast as all of them together
        weights=weights * job.itemsize / tensor / bandwidth,
        product=2 * weights / ranks / rates.matmul,
        sequence=2 * shape.vocab * memory.SAMPLER / rates.bandwidth + all_reduce,
        cached=job.kv_bytes_per_token * job.config.rollout.pipeline / bandwidth,
        overhead=gpu.decode_step.value * 1e-3 + messages * gpu.all_reduce.value * 1e-6,
        prefill=2 * shape.matrices / ranks / rates.matmul,
        slots=job.config.rollout.max_sequences,
        capacity=job.config.rollout.kv_cache_gib * 2**30 / job.kv_bytes_per_token)


def decode(decoder: Decoder, job: Job, work: Workload) -> float:
    """Seconds of generation in a step: of the replica that has most to do, or over-sampled, in the long run."""
    return _decode(decoder, job.replicas, job.config.rollout.oversample, work)


@functools.cache
def _decode(decoder: Decoder, replicas: int, factor: float, work: Workload) -> float:
    if factor > 1:
        return pace(over_sampled(decoder, work.steps, replicas, factor), work.tokens)
    shares = balanced(work.groups, replicas)
    return makespan(decoder, [max(shares, key=lambda share: sum(g.tokens for g in share))])


def fastest_generation(job: Job, gpu: Gpu, work: Workload) -> float:
    """With a KV cache that holds whatever there is: a lower bound."""
    return decode(replace(decoder(job, gpu), capacity=float("inf")), job, work)


# -- update ---------------------------------------------------------------------------------------------------------


def _passes(job: Job, rates: Rates, work: Workload) -> tuple[float, float, float, float]:
    """Seconds of all forward passes of one rank in a step, of the loss with its gradients, of all backward passes
    (recomputation in it), and of the exchange of gradients and parameters in one update."""
    read, squares, rows = work.read / job.data, work.squares / job.data, work.tokens / job.data
    shape, b, gpu = job.shape, job.itemsize, rates.gpu
    ranks = job.config.parallel.ranks
    updates = job.config.batch.updates
    micro_batches = updates * job.micro_batches(read / updates)
    products = 2 * shape.matrices * read / ranks / rates.matmul
    attention = 2 * squares * shape.query * shape.layers / ranks
    attention_forward = attention / gpu.attention_forward.value / 1e12
    attention_backward = 2.5 * attention / gpu.attention_backward.value / 1e12
    elementwise = _elementwise(job) * read * shape.layers / job.pipeline / rates.bandwidth
    messages = 4 * (job.tensor - 1) / job.tensor * read * shape.hidden * b * shape.layers / job.pipeline
    messages /= rates.message(job.tensor)
    stage_forward = products + attention_forward + elementwise + messages
    stage_backward = 2 * products + attention_backward + 2 * elementwise + messages
    stage_backward += micro_batches * ACCUMULATE * max(job.stages) / rates.bandwidth
    if job.config.parallel.recompute == "full":
        stage_backward += stage_forward
    elif job.config.parallel.recompute == "selective":  # the feed-forward part, with its half of the messages
        share = 3 * shape.hidden * shape.ffn * shape.layers / shape.matrices
        width = 7 * b * shape.ffn / job.tensor
        stage_backward += share * products + width * read * shape.layers / job.pipeline / rates.bandwidth
        stage_backward += messages / 2
    # The last stage's loss takes three products and one pass over the logits, or two where the vocabulary is split.
    vocab, passes = shape.vocab / job.tensor, 2 if job.tensor == 1 else 3  # reads and writes
    head = 3 * 2 * shape.hidden * vocab * rows / rates.matmul + passes * vocab * rows * b / rates.bandwidth
    if job.pipeline > 1:
        between = read * shape.hidden * b / rates.message(ranks)
        stage_forward, stage_backward = stage_forward + between, stage_backward + between
    # 1F1B: the slowest stage's micro-batches, and the others' first one before and last one after them
    bubble = updates * (job.pipeline - 1) / micro_batches
    forward = stage_forward * (1 + bubble)
    backward = stage_backward * (1 + bubble)
    share = (job.data - 1) / job.data
    exchange = (FLOAT32 + b) * max(job.stages) * share / rates.data_parallel(job)
    if job.config.parallel.overlap:  # behind the last micro-batch's backward and the first one's forward pass
        exchange = max(0.0, exchange - (forward + head + backward) / micro_batches)
    return forward, head, backward, exchange


def _elementwise(job: Job) -> float:
    """Bytes that the operators of one layer's forward pass between its products and its attention read and write, a
    token: norms and residual sums, bias, rotation (nine passes over query and key), and silu, + 0 and the product."""
    shape, tensor = job.shape, job.tensor
    width = shape.hidden // (tensor if job.config.parallel.sequence else 1)
    query, kv, ffn = shape.query / tensor, shape.kv / tensor, shape.ffn / tensor
    return job.itemsize * (10 * width + 2 * shape.bias * (query + 2 * kv) + 9 * (query + kv) + 7 * ffn)
