"""Memory of one GPU in every phase of a step, term by term, from what the code allocates.

Buffers are exact: Megatron-Core's contiguous parameters and float32 gradients, the distributed optimizer's shard,
vLLM's KV cache. Activations are the tensors that autograd keeps, layer by layer, as srpo/megatron/model.py makes them
(nothing is fused but norms and attention), plus what the worst moment of the backward pass needs beside them. The
largest micro-batch counts, full of responses at their limit: what fits then cannot run out of memory.

`device="cpu"` describes the same code on CPU, where the formulas are compared with measured allocations
(tests/distributed/test_plan_memory.py). What differs there: RMSNorm is composed of float32 operators; attention is one
kernel a sequence; gloo copies the gradients to reduce them; AdamW works tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from srpo.plan.job import FLOAT32, Job
from srpo.plan.reshard import sync

Device = Literal["cuda", "cpu"]

CHUNK = {"cuda": 2**29, "cpu": 2**26}
"""Logits that srpo_kernels.linear holds at a time, in elements. A test compares it with srpo_kernels."""
PIECE = 2**30
"""Bytes of optimizer state on the GPU at a time with parallel.offload. A test compares it with srpo/megatron."""
PREFILL = 16384
"""Tokens that vLLM's LLM class schedules at once on an H100 or H200 (max_num_batched_tokens)."""
SAMPLER = 18
"""Bytes of vLLM's sampler a sequence and vocabulary entry: bfloat16 logits, float32 logits, log-probs, probabilities
and noise."""


@dataclass(frozen=True)
class Phase:
    """What a GPU holds at the worst moment of a phase, in bytes, on the fullest pipeline stage."""

    name: str
    moment: str
    stage: int
    terms: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.terms.values())


def phases(job: Job, reserve: int = 0, graphs: int = 0, device: Device = "cuda") -> list[Phase]:
    """Generation, scoring (where there is any), update, sync and, with parallel.offload, what does not go piece by
    piece: the start and a save. `reserve`: bytes taken beside torch's allocations; `graphs`: by vLLM's CUDA graphs."""
    taken = _taken(job, reserve, graphs)
    stages = range(job.pipeline)
    found = [generation(job, reserve, graphs)]
    if job.config.batch.updates > 1 and job.config.algorithm.old_logprobs == "trainer" or job.config.algorithm.kl:
        found.append(_worst("scoring", taken, [("forward", s, _scoring(job, s, device)) for s in stages]))
    found.append(_worst("update", taken, [(m, s, terms) for s in stages for m, terms in _update(job, s, device)]))
    if not job.aliased:
        found.append(_worst("sync", taken, [("copying", s, _sync(job, s)) for s in stages]))
    if job.config.parallel.offload:  # without, the update takes more
        found.append(_worst("checkpoint", taken, [(m, s, terms) for s in stages for m, terms in _checkpoint(job, s)]))
    return found


def generation(job: Job, reserve: int = 0, graphs: int = 0) -> Phase:
    """The first of `phases`."""
    moments = [("sampling", s, _generation(job, s)) for s in range(job.pipeline)]
    return _worst("generation", _taken(job, reserve, graphs), moments)


def _taken(job: Job, reserve: int, graphs: int) -> dict[str, int]:
    return {"reserve": reserve, "CUDA graphs": 0 if job.config.rollout.eager else graphs}


def _worst(name: str, taken: dict[str, int], moments: list[tuple[str, int, dict[str, int]]]) -> Phase:
    moment, stage, terms = max(moments, key=lambda m: sum(m[2].values()))
    return Phase(name, moment, stage, {k: v for k, v in (terms | taken).items() if v})


def host(job: Job) -> dict[str, int]:
    """Bytes of host memory that one rank takes for state, at most: vLLM's and the graders' processes not counted."""
    weights = max(job.stages)
    terms = {
        # srpo/megatron/checkpoint.py: a rank gathers the whole optimizer state of its tensor and pipeline shard.
        "checkpoint snapshot": weights * (job.itemsize + 3 * FLOAT32),
        "reference policy": weights * job.itemsize if job.config.algorithm.kl else 0,
        "offloaded state": optimizer_state(job, weights) if job.config.parallel.offload else 0,
    }
    return {k: v for k, v in terms.items() if v}


# -- state ----------------------------------------------------------------------------------------------------------


def optimizer_state(job: Job, elements: int) -> int:
    """The distributed optimizer's shard: two moments, and a float32 copy of parameters that are not float32."""
    return (2 if job.itemsize == FLOAT32 else 3) * FLOAT32 * elements // job.data


def state(job: Job, stage: int) -> dict[str, int]:
    """What the trainer holds between steps, in bytes."""
    elements = job.stages[stage]
    return {"parameters": job.itemsize * elements, "gradients": FLOAT32 * elements,
            "optimizer state": optimizer_state(job, elements)}


def piece(job: Job, stage: int) -> int:
    """Bytes of optimizer state that an optimizer step has on the GPU at a time: one parameter's at least."""
    whole = optimizer_state(job, job.stages[stage])
    if not job.config.parallel.offload:
        return whole
    largest = max(job.shape.stage(stage, job.tensor, job.pipeline))
    return min(whole, max(PIECE, optimizer_state(job, largest) * job.data))


def _held(job: Job, stage: int) -> dict[str, int]:
    """The same while gradients and optimizer state may be on the host: from one update to the next."""
    held = state(job, stage)
    return {"parameters": held["parameters"]} if job.config.parallel.offload else held


def _generation(job: Job, stage: int) -> dict[str, int]:
    shape, rollout, tensor = job.shape, job.config.rollout, job.config.rollout_tensor
    held = _held(job, stage)
    tokens = min(PREFILL, rollout.max_sequences * (job.longest + 1))
    width = 3 * shape.ffn // tensor + (2 * shape.query + 2 * shape.kv) // tensor + 3 * shape.hidden
    return held | {
        "gather buffer": _gather_buffer(job),
        "rollout weights": max(sync(job).owned),
        "KV cache": int(rollout.kv_cache_gib * 2**30),
        "vLLM activations": tokens * width * job.itemsize,
        "sampler": rollout.max_sequences * shape.vocab * SAMPLER,
    }


def _scoring(job: Job, stage: int, device: Device) -> dict[str, int]:
    """Log-probs without gradients: one layer's tensors, or a chunk of logits."""
    held, b, t = _held(job, stage), job.itemsize, job.micro_batch_tokens
    layer = t * b * (5 * job.shape.ffn // job.tensor + 4 * job.split_hidden + 2 * job.shape.head_dim)
    head = 0
    if stage == job.pipeline - 1:
        rows = min(job.micro_batch_rows, chunk_rows(job, device))
        head = b * (job.shape.hidden * (t + job.micro_batch_rows) + rows * job.shape.vocab // job.tensor)
    return held | {"working tensors": max(layer, head), "gather buffer": _gather_buffer(job)}


def _sync(job: Job, stage: int) -> dict[str, int]:
    """The reshard plan receives into vLLM's storage; at most a slice of one parameter waits elsewhere."""
    largest = job.itemsize * max(job.shape.stage(stage, job.tensor, job.pipeline))
    return _held(job, stage) | {"gather buffer": _gather_buffer(job), "rollout weights": max(sync(job).owned),
                                 "slice in flight": largest}


def _checkpoint(job: Job, stage: int) -> Iterator[tuple[str, dict[str, int]]]:
    """(moment, terms). While Megatron builds its buffers the model has its parameters outside them too; the main
    parameters, made next, are still on the GPU with the gradients."""
    held = state(job, stage)
    main = 0 if job.itemsize == FLOAT32 else held["optimizer state"] // 3
    yield "building", {"parameters": 2 * held["parameters"], "gradients": held["gradients"]}
    yield "building", {"parameters": held["parameters"], "gradients": held["gradients"], "optimizer state": main}
    yield "saving", {"parameters": held["parameters"], "optimizer state": held["optimizer state"],
                     "gather buffer": _gather_buffer(job), "rollout weights": max(sync(job).owned)}


# -- update ---------------------------------------------------------------------------------------------------------


def _update(job: Job, stage: int, device: Device) -> Iterator[tuple[str, dict[str, int]]]:
    """(moment, terms) of each moment that can be the worst."""
    held, elements, b = state(job, stage), job.stages[stage], job.itemsize
    at_hand = piece(job, stage)  # of the optimizer's state, in its step
    if job.config.parallel.offload:
        del held["optimizer state"]
    last = stage == job.pipeline - 1
    flight = job.pipeline - stage  # 1F1B: micro-batches whose backward pass is still to come, if there are enough
    others, this = (flight - 1) * micro_batch(job, stage, device), micro_batch(job, stage, device)

    def moment(name: str, activations: int, working: int) -> tuple[str, dict[str, int]]:
        return name, held | {"gather buffer": _gather_buffer(job), "activations": activations,
                              "working tensors": working}

    if last:
        norm = _final_norm(job, device)
        yield moment("loss", others + this, head(job, device))
        yield moment("backward of the final norm", others + this, _norm_backward(job, device))
        this -= norm
    recompute = job.config.parallel.recompute
    if recompute == "selective":  # what is computed again, and its output
        this += job.micro_batch_tokens * (feed_forward(job) + b * job.split_hidden)
    elif recompute == "full":  # the input, which the norm keeps too, is there already, except as a float32 copy
        copied = device == "cpu" and b != FLOAT32
        this += job.micro_batch_tokens * (layer(job, device) + b * job.split_hidden * copied)
    yield moment("backward of the last layer", others + this, _layer_backward(job))
    if stage == 0:
        cast = FLOAT32 if device == "cpu" and b != FLOAT32 else 0  # before it is added to the float32 gradients
        yield moment("embedding's gradient", others, (b + cast) * job.shape.embedding(job.tensor)
                     + b * job.micro_batch_tokens * job.shape.hidden)
    if device == "cpu":  # gloo works on copies
        yield moment("gradient reduction", 0, FLOAT32 * elements)
        yield moment("parameter gathering", 0, b * elements)
        # AdamW tensor by tensor: a root and a quotient of the largest
        largest = max(job.shape.stage(stage, job.tensor, job.pipeline))
        yield moment("optimizer step", 0, 2 * FLOAT32 * min(largest, elements // job.data))
    else:  # torch's AdamW over all tensors at once: the roots of the second moments
        name, terms = moment("optimizer step", 0, at_hand // (2 if b == FLOAT32 else 3))
        yield name, terms | {"optimizer state": at_hand}


def micro_batch(job: Job, stage: int, device: Device) -> int:
    """Bytes that one micro-batch leaves behind on a stage for its backward pass."""
    t, b, shape = job.micro_batch_tokens, job.itemsize, job.shape
    kept = {"none": layer(job, device),
            "selective": layer(job, device) - feed_forward(job),
            "full": b * job.split_hidden}  # the layer's input
    total = t * kept[job.config.parallel.recompute] * shape.layers // job.pipeline
    total += 2 * t * shape.head_dim * b  # cosines and sines
    if stage == job.pipeline - 1:
        total += _final_norm(job, device)
    else:
        total += t * b * job.split_hidden  # the output, until its gradient arrives
    return total


def layer(job: Job, device: Device) -> int:
    """Bytes that one layer keeps for its backward pass, a token.

    Norms: their inputs (the residual stream) and outputs (inputs of the next linear layer). Attention: the stacked
    query, key and value (its value part is a view), the rotated query and key, the output, the log-sum-exp.
    """
    shape, b, tensor = job.shape, job.itemsize, job.tensor
    query, kv = shape.query // tensor, shape.kv // tensor
    norms = 2 * (_norm(job, device) + b * job.split_hidden)
    attention = b * (query + 2 * kv + query + kv + query) + FLOAT32 * shape.heads // tensor
    if shape.qk_norm:
        attention += (shape.heads + shape.kv_heads) // tensor * FLOAT32
        attention += (2 * FLOAT32 if device == "cpu" else 0) * (query + kv)
    if device == "cpu" or b == FLOAT32:  # each sequence's output, then all of them joined
        attention += b * query
    return norms + attention + feed_forward(job)


def feed_forward(job: Job) -> int:
    """Of that the feed-forward part's, unfused: gate and up (2), silu(gate), up + 0, and their product."""
    return job.itemsize * 5 * job.shape.ffn // job.tensor


def head(job: Job, device: Device) -> int:
    """Bytes of the fused loss beside the activations: hidden states, those of response tokens, their gradient, and a
    chunk of logits with what its two products need."""
    shape, b, rows = job.shape, job.itemsize, min(job.micro_batch_rows, chunk_rows(job, device))
    vocab = shape.vocab // job.tensor
    hidden = b * shape.hidden * (job.micro_batch_tokens + 2 * job.micro_batch_rows)
    product = b * shape.hidden * rows  # the gradient of the rows, then a masked copy of them
    total = FLOAT32  # of the weight's gradient
    weight = 0
    if job.config.parallel.overlap:  # it goes through autograd, rounded at once where there is a single chunk
        total = b if job.micro_batch_rows <= rows else FLOAT32
        weight = total * vocab * shape.hidden
    if device == "cpu" and total != b:  # block by block, each cast
        product += (b + FLOAT32) * min(2**22, vocab * shape.hidden)
    return hidden + b * rows * vocab + product + weight


def chunk_rows(job: Job, device: Device) -> int:
    """Rows of a chunk of logits, as srpo_kernels.linear counts them."""
    rows = CHUNK[device] // (job.shape.vocab // job.tensor)
    return max(1, rows if rows < 128 else rows // 128 * 128)


def _layer_backward(job: Job) -> int:
    """Working tensors in the feed-forward part of the last layer, whose activations are all still there: the gradient
    of the residual stream, and of gate and up beside that of their product, or of the product and of the weight."""
    t, hidden, ffn = job.micro_batch_tokens, job.shape.hidden, job.shape.ffn // job.tensor
    return job.itemsize * (t * job.split_hidden + max(2 * t * ffn, t * (ffn + hidden) + hidden * ffn))


def _norm_backward(job: Job, device: Device) -> int:
    """Gradients of the hidden states before and after the final norm; on CPU four float32 ones."""
    width = job.micro_batch_tokens * job.split_hidden
    return (4 * FLOAT32 if device == "cpu" else 2 * job.itemsize) * width


def _final_norm(job: Job, device: Device) -> int:
    return job.micro_batch_tokens * _norm(job, device)


def _norm(job: Job, device: Device) -> int:
    """Bytes that an RMSNorm over the hidden size keeps, a token: its input and a statistic; on CPU a float32 copy of
    the input (the input itself in float32) and the normalized values."""
    width = job.split_hidden
    if device == "cpu":
        return 2 * FLOAT32 * width + FLOAT32
    return job.itemsize * width + FLOAT32


def _gather_buffer(job: Job) -> int:
    """Sequence parallelism gathers a linear layer's input in one buffer, which Megatron keeps."""
    return job.micro_batch_tokens * job.shape.hidden * job.itemsize if job.config.parallel.sequence else 0
