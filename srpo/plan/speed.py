"""How long each phase of a step takes: a roofline of products, memory traffic and messages.

What is counted is what srpo/megatron and vLLM do: unfused element-wise operators as bytes, products and attention as
operations, collectives at the rate of the links they cross. Nothing overlaps unless the code overlaps it. The mean
micro-batch stands for all, and the data-parallel ranks for one another: the trainer balances both.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from srpo.plan import memory
from srpo.plan.hardware import Gpu
from srpo.plan.job import FLOAT32, Job
from srpo.plan.reshard import sync
from srpo.plan.shape import Shape
from srpo.plan.simulate import Decoder, balanced, likely_last, makespan, over_sampled, pace
from srpo.plan.workload import Load, Workload

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
    """Response tokens of the step, generated."""
    gpus: int
    update_flops: float
    """Of the model in the update: 6 a weight and token, 2 where it only passes forward; the output matrix for response
    tokens, causal attention."""
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
    """Of a step, the mean of those in `work`; `generation`: seconds, where they are known."""
    rates, shape, config = Rates(gpu), job.shape, job.config
    algorithm, updates, elements = config.algorithm, config.batch.updates, max(job.stages)
    # Responses without an advantage have a gradient only if the loss has other terms (srpo/train.py).
    learning = work.trained if algorithm.kl_coef or algorithm.entropy_coef else work.learning
    watching = work.trained.without(learning)
    learn, watch = _passes(job, rates, learning), _passes(job, rates, watching)
    scoring = 0.0
    if updates > 1 and algorithm.old_logprobs == "trainer":
        scoring += learn.forward + learn.head / 3
    if algorithm.kl:  # the reference policy changes places with the trainer's, there and back
        scoring += learn.forward + watch.forward + (learn.head + watch.head) / 3
        scoring += 4 * job.itemsize * elements / rates.host
    adamw = ADAMW_PASSES * FLOAT32 * elements / job.data
    offloaded = memory.optimizer_state(job, elements) if config.parallel.offload else 0
    moved = sync(job)
    block = math.lcm(config.parallel.ranks, config.rollout_ranks)
    return Times(
        generation=decode(decoder(job, gpu), job, work) if generation is None else generation,
        scoring=scoring,
        update=learn.forward + learn.head + learn.backward + watch.forward + watch.head / 3,
        reduction=updates * _exchange(job, rates, learn),
        optimizer=updates * (FLOAT32 * elements + adamw) / rates.bandwidth,  # with the gradients set to zero
        offload=2 * updates * offloaded / rates.host,  # in and out, piece by piece, in each optimizer step
        sync=max(moved.needed) / rates.message(block),
        tokens=work.generated.tokens, gpus=job.gpus,
        update_flops=3 * forward_flops(shape, learning) + forward_flops(shape, watching),
        generation_flops=forward_flops(shape, work.generated._replace(read=work.generated.tokens)),
        peak=gpu.peak.value * 1e12 * job.gpus)


def forward_flops(shape: Shape, load: Load) -> float:
    """Of the model: 2 a weight and token, the output matrix for response tokens alone, and causal attention."""
    attention = 2 * load.squares * shape.query * shape.layers
    return 2 * (shape.matrices * load.read + shape.vocab * shape.hidden * load.tokens) + attention


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
    """Mean seconds of a step's generation: round after round, each until its last replica ends; or over-sampled."""
    return _decode(decoder, job.replicas, job.config.rollout.oversample, work)


@functools.cache
def _decode(decoder: Decoder, replicas: int, factor: float, work: Workload) -> float:
    if factor > 1:
        steps = [step.groups for step in work.steps]
        return pace(over_sampled(decoder, steps, replicas, factor), work.generated.tokens)
    rounds = [some for step in work.steps for some in step.rounds]
    return sum(makespan(decoder, likely_last(balanced(some, replicas))) for some in rounds) / len(work.steps)


def fastest_generation(job: Job, gpu: Gpu, work: Workload) -> float:
    """With a KV cache that holds whatever there is: a lower bound."""
    return decode(replace(decoder(job, gpu), capacity=float("inf")), job, work)


# -- update ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passes:
    """Seconds of one rank in a step, over some of the responses."""

    forward: float
    head: float
    """The loss with its gradients: three products, a third of which is the forward part."""
    backward: float
    """Recomputation in it."""
    micro_batches: int


def _passes(job: Job, rates: Rates, load: Load) -> Passes:
    updates = job.config.batch.updates
    read, squares, rows = load.read / job.data, load.squares / job.data, load.tokens / job.data
    micro_batches = updates * job.micro_batches(read / updates, load.responses / job.data / updates)
    if not micro_batches:
        return Passes(0.0, 0.0, 0.0, 0)
    shape, b, gpu, ranks = job.shape, job.itemsize, rates.gpu, job.config.parallel.ranks
    layers = shape.layers / job.pipeline
    products = 2 * shape.matrices * read / ranks / rates.matmul
    attention = 2 * squares * shape.query * shape.layers / ranks
    attention_forward = attention / gpu.attention_forward.value / 1e12
    attention_backward = 2.5 * attention / gpu.attention_backward.value / 1e12
    elementwise = _elementwise(job) * read * layers / rates.bandwidth
    messages, behind = _messages(job, rates, products, read)
    forward = products + attention_forward + elementwise + messages
    backward = 2 * products + attention_backward + 2 * elementwise + behind
    backward += micro_batches * ACCUMULATE * max(job.stages) / rates.bandwidth
    if job.config.parallel.recompute == "full":
        backward += forward
    elif job.config.parallel.recompute == "selective":  # the feed-forward part, with its half of the messages
        share = 3 * shape.hidden * shape.ffn * shape.layers / shape.matrices
        backward += share * products + 7 * b * shape.ffn / job.tensor * read * layers / rates.bandwidth + messages / 2
    # The last stage's loss takes three products and one pass over the logits, or two where the vocabulary is split.
    vocab, passes = shape.vocab / job.tensor, 2 if job.tensor == 1 else 3  # reads and writes
    head = 3 * 2 * shape.hidden * vocab * rows / rates.matmul + passes * vocab * rows * b / rates.bandwidth
    if job.pipeline > 1:
        between = read * job.split_hidden * b / rates.message(ranks)
        forward, backward = forward + between, backward + between
    # 1F1B: the slowest stage's micro-batches, and the others' first one before and last one after them
    bubble = 1 + updates * (job.pipeline - 1) / micro_batches
    return Passes(forward * bubble, head, backward * bubble, micro_batches)


def _messages(job: Job, rates: Rates, products: float, read: float) -> tuple[float, float]:
    """Seconds of the collectives over tensor-parallel ranks that nothing hides, in the forward and the backward pass.

    A layer has two column-parallel linear layers, each followed by a row-parallel one. `once`: an all-gather or a
    reduce-scatter of the hidden states for each layer; an all-reduce is both. Forward: one before or behind each linear
    layer. Backward Megatron-Core's column-parallel layers gather their input again while they multiply for the input's
    gradient, and reduce that one while they multiply for the weight's.
    """
    shape, tensor = job.shape, job.tensor
    once = (tensor - 1) / tensor * read * shape.hidden * job.itemsize / rates.message(tensor)
    once *= shape.layers / job.pipeline
    column = shape.layers * shape.hidden * (shape.query + 2 * shape.kv + 2 * shape.ffn) / shape.matrices * products
    if job.config.parallel.sequence:
        return 4 * once, 2 * once + 2 * max(0.0, 2 * once - column)
    return 4 * once, max(0.0, 4 * once - column)


def _exchange(job: Job, rates: Rates, learn: Passes) -> float:
    """Seconds that gradients and parameters take between data-parallel ranks in one update."""
    share = (job.data - 1) / job.data
    exchange = (FLOAT32 + job.itemsize) * max(job.stages) * share / rates.data_parallel(job)
    if job.config.parallel.overlap and learn.micro_batches:  # behind the last backward and the first forward pass
        exchange -= (learn.forward + learn.head + learn.backward) / learn.micro_batches
    return max(0.0, exchange)


def _elementwise(job: Job) -> float:
    """Bytes that the operators of one layer's forward pass between its products and its attention read and write, a
    token: norms and residual sums, bias, rotation (nine passes over query and key), and silu, + 0 and the product."""
    shape, tensor = job.shape, job.tensor
    query, kv, ffn = shape.query / tensor, shape.kv / tensor, shape.ffn / tensor
    return job.itemsize * (10 * job.split_hidden + 2 * shape.bias * (query + 2 * kv) + 9 * (query + kv) + 7 * ffn)
