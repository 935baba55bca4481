"""Sampling with vLLM in the trainer's process: one engine a rank, tensor-parallel replicas by external_launcher.

What a prompt's samples are depends on (seed, step, prompt, sample index) and the topology alone. On CUDA every request
carries its own seed, which vLLM's sampler hashes in the kernel. On CPU vLLM would keep a torch generator a seeded
request, which is slow; there torch is seeded once before a batch, and the scheduler's order is deterministic.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # some modules log before vLLM sets its own

import numpy as np
import torch
import torch._dynamo
from torch import distributed as dist
from vllm import LLM, RequestOutput, SamplingParams
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind

from srpo.batch import Sample
from srpo.config import Config
from srpo.megatron.step import Trainer
from srpo.rollout.weights import SharedWeights


class RolloutEngine:
    """A vLLM engine on the trainer's weights. `replica` of `replicas` says which prompts are this rank's."""

    def __init__(self, config: Config, trainer: Trainer, stop_ids: list[int]):
        self.replica = dist.get_rank() // config.rollout_ranks
        self.replicas = dist.get_world_size() // config.rollout_ranks
        self.stop_ids = stop_ids
        self.max_tokens = config.rollout.max_response_tokens
        self.seed = config.seed
        self.on_cuda = torch.cuda.is_available()
        if not self.on_cuda:  # vLLM compiles one line of its sampler: ten seconds of C++ compiler for nothing here
            torch._dynamo.config.disable = True
        self.weights = SharedWeights(trainer)
        self.llm = LLM(
            config.model.path, load_format=SharedWeights.load_format, dtype=config.model.dtype,
            skip_tokenizer_init=True, generation_config="vllm", logprobs_mode="processed_logprobs", seed=config.seed,
            tensor_parallel_size=config.rollout_tensor, pipeline_parallel_size=config.rollout.pipeline,
            distributed_executor_backend="external_launcher",
            max_model_len=config.data.max_prompt_tokens + self.max_tokens, max_num_seqs=config.rollout.max_sequences,
            kv_cache_memory_bytes=int(config.rollout.kv_cache_gib * 2**30), enable_sleep_mode=self.on_cuda,
            # The cache's size being given, this is only a check of free memory, which the trainer's share would fail.
            gpu_memory_utilization=0.05, enforce_eager=config.rollout.eager or not self.on_cuda)

    def generate(self, prompts: Mapping[int, list[int]], keys: Mapping[int, str], *, step: int, samples: int,
                 temperature: float) -> Iterator[dict[tuple[int, int], Sample]]:
        """`samples` responses to each prompt of this replica, begun in the order given and handed over as they finish:
        after each pass of vLLM those, often none, that it finished, by prompt and sample. `keys` name the prompts, for
        their seeds.

        Every rank of a replica calls it with the same arguments and gets the same.
        """
        if not prompts:
            return
        # Old weights made what is cached; and what was generated before (by a run that was not killed) must not matter.
        self.llm.reset_prefix_cache()
        if not self.on_cuda:
            torch.manual_seed(_seed(self.seed, step, f"replica {self.replica} of {self.replicas}"))
        engine = self.llm.llm_engine
        for i, prompt in prompts.items():
            seed = _seed(self.seed, step, keys[i])
            for j in range(samples):  # requests of their own: vLLM's `n` keeps the first until the last is finished
                engine.add_request(f"{i} {j}", tokens_input(prompt), SamplingParams(
                    temperature=temperature, max_tokens=self.max_tokens, stop_token_ids=self.stop_ids,
                    seed=seed + j if self.on_cuda else None, logprobs=0, flat_logprobs=True, detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY))
        while engine.has_unfinished_requests():
            yield dict(_response(prompts, output) for output in engine.step())

    def sync(self) -> None:
        """After an update: bring the weights up to date. Nothing moves where they are shared."""
        if self.on_cuda and not self.weights.aliased:
            self.llm.wake_up(tags=["weights"])  # vLLM's own copies were unmapped with the KV cache
        self.weights.sync()

    def sleep(self) -> None:
        """Free the KV cache for the update (CUDA only; the weights are the trainer's and stay)."""
        if self.on_cuda:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        if self.on_cuda:
            self.llm.wake_up()


def _response(prompts: Mapping[int, list[int]], output: RequestOutput) -> tuple[tuple[int, int], Sample]:
    i, j = map(int, output.request_id.split())
    (completion,) = output.outputs
    return (i, j), Sample(np.asarray(prompts[i], np.int32), np.asarray(completion.token_ids, np.int32),
                          np.asarray(completion.logprobs.logprobs, np.float32),
                          truncated=completion.finish_reason == "length")


def _seed(seed: int, step: int, key: str) -> int:
    """62 bits, well mixed: the sample's index is added to it, and streams must not overlap."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{key}".encode(), digest_size=8).digest()) >> 2
