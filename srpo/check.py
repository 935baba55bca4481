"""Which settings can work together: a layout against the model and the ranks, a batch against the layout, settings that
need each other. No torch here: a launch that cannot run ends with one line before anything heavy is imported.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from srpo.config import Config, Parallel, Resample, Stage, hf_config
from srpo.errors import UserError

READ_BY = {"drop_at": ("history", "no_positive"), "epochs": ("history", "difficulty"), "low": ("difficulty",),
           "high": ("difficulty",), "max_rounds": ("dynamic",)}
"""Which samplers read each key of `resample`."""


def check(config: Config, world_size: int, *, gpu: bool | None = None) -> None:
    """Refuse what cannot run on `world_size` ranks. `gpu`: whether they have GPUs; by default if this machine has.
    Reads config.json of the model, nothing else. Raises UserError naming the key, its value, and what would do."""
    hf = hf_config(config.model.path)
    p, b, a, r = config.parallel, config.batch, config.algorithm, config.rollout
    if p.sequence and p.tensor == 1:
        raise UserError("parallel.sequence = True: needs parallel.tensor > 1; set parallel.sequence to false")
    if p.context > 1:
        raise UserError(f"parallel.context = {p.context}: Megatron-Core 0.16.1 splits a sequence over ranks in "
                        "Transformer Engine's attention only, which is not used here; set it to 1, and for long "
                        "responses parallel.recompute = 'full', parallel.sequence and a larger parallel.tensor")
    _check_training(p, hf)
    _divides("parallel.tensor x parallel.pipeline", p.ranks, f"the launch's {world_size} ranks", world_size)
    _check_rollout(config, hf, world_size, _gpu() if gpu is None else gpu)
    replicas = world_size // p.ranks
    if b.prompts % replicas:
        raise UserError(f"batch.prompts = {b.prompts}: must divide over {replicas} data-parallel replicas; "
                        f"nearest: {_nearest(b.prompts, replicas)}")
    responses = b.prompts * b.samples // replicas
    _divides("batch.updates", b.updates, f"the {responses} responses of a replica (prompts x samples / replicas)",
             responses)
    each = responses // b.updates
    if b.micro_batch_tokens is None:
        _divides("batch.micro_batch", b.micro_batch, f"the {each} responses of a replica and update", each)
    elif b.micro_batch_tokens < (longest := config.data.max_prompt_tokens + r.max_response_tokens):
        raise UserError(f"batch.micro_batch_tokens = {b.micro_batch_tokens}: below data.max_prompt_tokens + "
                        f"rollout.max_response_tokens = {longest}, which one response can take")
    if a.old_logprobs == "rollout" and a.tis_cap is None:
        raise UserError("algorithm.tis_cap: required with old_logprobs = 'rollout'; 2.0 is usual")
    if r.oversample > 1 and a.tis_cap is None:
        raise UserError(f"algorithm.tis_cap: required with rollout.oversample = {r.oversample:g}, which trains on "
                        "tokens of earlier policies; 2.0 is usual")
    if r.oversample > 1 and config.resample.sampler == "dynamic":
        raise UserError(f"rollout.oversample = {r.oversample:g}: does not go with resample.sampler = 'dynamic', which "
                        "rolls out further prompts until a step is full; set it to 1")
    _check_resample(config.resample)
    if a.kl is None and a.kl_coef:
        raise UserError(f"algorithm.kl_coef = {a.kl_coef}: has no effect without algorithm.kl; set kl to k1, k2 or k3")
    if a.truncated == "shape" and config.reward.overlong is None:
        raise UserError("reward.overlong: required with algorithm.truncated = 'shape'")
    if config.reward.overlong and config.reward.overlong.start >= r.max_response_tokens:
        raise UserError(f"reward.overlong.start = {config.reward.overlong.start}: must be below "
                        f"rollout.max_response_tokens = {r.max_response_tokens}")
    limit = hf.get("max_position_embeddings")
    if limit and config.data.max_prompt_tokens + r.max_response_tokens > limit:
        left = limit - config.data.max_prompt_tokens
        raise UserError(f"rollout.max_response_tokens = {r.max_response_tokens}: with data.max_prompt_tokens = "
                        f"{config.data.max_prompt_tokens} it exceeds the model's {limit} positions; "
                        + (f"at most {left}" if left > 0 else "lower both"))
    if config.eval.temperature == 0 and config.eval.samples > 1:
        raise UserError(f"eval.samples = {config.eval.samples}: greedy samples (eval.temperature = 0) are all the "
                        "same; set it to 1")
    if config.eval.every and not config.data.eval:
        raise UserError(f"eval.every = {config.eval.every}: has no effect without data.eval")
    _check_stages(config.stages)
    _check_judge(config)


def check_data(config: Config) -> None:
    """Refuse data files that cannot be read, which is otherwise found once torch and vLLM are loaded, or the supervised
    warm start begins. A run that has its warm start goes on without the data of that. Raises UserError naming the key
    and the file."""
    warm = config.warm_start
    lists = {"data.train": config.data.train, "data.eval": config.data.eval,
             "warm_start.data": warm.data if warm and not Path(config.run, "warm").exists() else []}
    for key, files in lists.items():
        for i, file in enumerate(files):
            try:
                open(file, "rb").close()
            except FileNotFoundError:
                raise UserError(f"{key}.{i} = {file!r}: no such data file (a relative path is taken from the directory "
                                "that srpo is started in)") from None
            except OSError as e:
                raise UserError(f"{key}.{i} = {file!r}: cannot be read: {e.strerror}") from None


def _check_training(p: Parallel, hf: dict[str, Any]) -> None:
    """Megatron-Core splits the model over parallel.tensor and its layers over parallel.pipeline."""
    kv_heads, layers, split = _kv_heads(hf), hf["num_hidden_layers"], _split(hf)
    shared = math.gcd(kv_heads, *split.values())
    for what, size in {"key-value heads": kv_heads, **split}.items():
        _divides("parallel.tensor", p.tensor, f"the model's {size} {what}", size, shared)
    _divides("parallel.pipeline", p.pipeline, f"the model's {layers} layers", layers)


def _check_rollout(config: Config, hf: dict[str, Any], world_size: int, gpu: bool) -> None:
    """vLLM splits it over rollout.tensor and rollout.pipeline; ranks beyond the key-value heads hold copies of them."""
    p, r, tensor = config.parallel, config.rollout, config.rollout_tensor
    if r.pipeline > 1 and not gpu:
        raise UserError(f"rollout.pipeline = {r.pipeline}: vLLM generates with one pipeline stage only on CPU; leave "
                        "it at 1 and set rollout.tensor")
    key = "rollout.tensor"
    if r.tensor is None:
        _divides("rollout.pipeline", r.pipeline, f"the {p.ranks} ranks that hold one copy of the trained model "
                 "(or set rollout.tensor)", p.ranks)
        key = "parallel.tensor x parallel.pipeline (vLLM's tensor-parallel size)"
    kv_heads, layers, split = _kv_heads(hf), hf["num_hidden_layers"], _split(hf)
    for what, size in split.items():
        _divides(key, tensor, f"the model's {size} {what}", size, math.gcd(*split.values()))
    if kv_heads % tensor and tensor % kv_heads:
        raise UserError(f"{key} = {tensor}: neither divides the model's {kv_heads} key-value heads nor is a multiple "
                        "of them; set rollout.tensor to one that does")
    _divides("rollout.pipeline", r.pipeline, f"the model's {layers} layers", layers)
    _divides("rollout.tensor x rollout.pipeline", config.rollout_ranks, f"the launch's {world_size} ranks", world_size)


def _split(hf: dict[str, Any]) -> dict[str, int]:
    """What every tensor-parallel size must divide. Megatron-Core and vLLM both get a vocabulary padded to 64s."""
    vocabulary = -(-(hf.get("vocab_size") or 0) // 64) * 64
    return {"attention heads": hf["num_attention_heads"], "feed-forward width": hf["intermediate_size"],
            "padded vocabulary entries": vocabulary}


def _kv_heads(hf: dict[str, Any]) -> int:
    return hf.get("num_key_value_heads") or hf["num_attention_heads"]


def _gpu() -> bool:
    """Without torch, which takes seconds to ask: an NVIDIA driver has made its device files, and none is hidden."""
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def _check_resample(resample: Resample) -> None:
    if resample.sampler == "no_positive" and resample.epochs is not None:
        raise UserError(f"resample.epochs = {resample.epochs}: with sampler = 'no_positive' prompts leave for good; "
                        "leave it unset, or set sampler to 'history' and drop_at to 0.9")
    for key, samplers in READ_BY.items():
        if resample.sampler not in samplers and getattr(resample, key) != Resample.model_fields[key].default:
            raise UserError(f"resample.{key} = {getattr(resample, key)}: has no effect with sampler = "
                            f"{resample.sampler!r}; leave it unset, or set sampler to "
                            f"{' or '.join(map(repr, samplers))}")
    if resample.low > resample.high:
        raise UserError(f"resample.low = {resample.low:g}: must not be above resample.high = {resample.high:g}")


def _check_stages(stages: list[Stage]) -> None:
    names = [stage.name for stage in stages]
    for i, stage in enumerate(stages):
        if names.index(stage.name) < i:
            raise UserError(f"stages.{i}.name = {stage.name!r}: used before; the ledger tells stages apart by name")
        for length in ("epochs", "steps"):
            value = getattr(stage, length)
            if stage.until == length and value is None:
                raise UserError(f"stages.{i}.{length}: required with until: {length}")
            if stage.until != length and value is not None:
                raise UserError(f"stages.{i}.{length} = {value}: has no effect with until: {stage.until}; "
                                "max_steps ends a stage of any kind")
        earliest = max(stage.window, stage.min_steps)
        if stage.until == "plateau" and stage.max_steps is not None and stage.max_steps <= earliest:
            raise UserError(f"stages.{i}.max_steps = {stage.max_steps}: ends the stage before a plateau can be seen, "
                            f"after {earliest} steps; lower window and min_steps below it, or use until: steps")


def _check_judge(config: Config) -> None:
    """One function of the user's decides what is correct in domain other, which has no grader."""
    judges = [(i, custom) for i, custom in enumerate(config.reward.custom) if custom.role == "correct"]
    for i, custom in judges:
        if i != judges[0][0]:
            raise UserError(f"reward.custom.{i}.role = 'correct': reward.custom.{judges[0][0]} has it too, and one "
                            "function decides; set it to bonus")
        if custom.weight != 1:
            raise UserError(f"reward.custom.{i}.weight = {custom.weight:g}: has no effect with role = 'correct'; set "
                            "reward.accuracy")
    for i, stage in enumerate(config.stages):
        if "other" in stage.domains and not judges:
            raise UserError(f"stages.{i}.domains = {stage.domains}: 'other' has no grader of ours; give a function in "
                            "reward.custom the role correct")


def _divides(key: str, size: int, what: str, total: int, shared: int | None = None) -> None:
    """`shared`: what the size must divide in the end, when `total` is not the only such number."""
    if total % size:
        raise UserError(f"{key} = {size}: does not divide {what}; nearest: {_nearest_divisor(size, shared or total)}")


def _nearest_divisor(value: int, total: int) -> int:
    return min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: (abs(d - value), d))


def _nearest(value: int, step: int) -> int:
    return max(step, round(value / step) * step)
