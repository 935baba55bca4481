"""Sampling with vLLM in the trainer's process: one engine a rank, tensor-parallel replicas by external_launcher.

What a prompt's samples are depends on (seed, step, prompt, sample index) and the topology alone. On CUDA every request
carries its own seed, which vLLM's sampler hashes in the kernel. On CPU vLLM would keep a torch generator a seeded
request, which is slow; there torch is seeded once before a batch, and the scheduler's order is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed as dist
from vllm import LLM, RequestOutput, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import FinishReason

from srpo.batch import Sample
from srpo.config import Config, stop_strings
from srpo.data.prompts import Tokenizer
from srpo.megatron.step import Trainer
from srpo.rollout.runner import choose_runner, worker
from srpo.rollout.seeds import stream
from srpo.rollout.stop import StopStrings, add_request
from srpo.rollout.weights import SharedWeights


class RolloutEngine:
    """A vLLM engine on the trainer's weights, asleep but between `wake` and `sleep`. `replica` of `replicas` says which
    prompts are this rank's; `current`, whether vLLM's weights are the trainer's."""

    def __init__(self, config: Config, trainer: Trainer, tokenizer: Tokenizer):
        self.replica = dist.get_rank() // config.rollout_ranks
        self.replicas = dist.get_world_size() // config.rollout_ranks
        self.stop_ids = tokenizer.stop_ids
        self.stop = StopStrings(stop_strings(config.rollout.stop, config.data.template), tokenizer)
        self.max_tokens = config.rollout.max_response_tokens
        self.seed = config.seed
        self._before: dict[str, Sample] = {}
        """What earlier steps left of the responses that are being generated, by vLLM's name of the request."""
        self.on_cuda = choose_runner(config.rollout.pipeline)
        self.weights = SharedWeights(trainer)
        self.current = self.awake = True
        self._make_room()
        self.llm = LLM(
            config.model.path, load_format=SharedWeights.load_format, dtype=config.model.dtype,
            skip_tokenizer_init=True, generation_config="vllm", logprobs_mode="processed_logprobs", seed=config.seed,
            tensor_parallel_size=config.rollout_tensor, pipeline_parallel_size=config.rollout.pipeline,
            distributed_executor_backend="external_launcher", worker_cls=worker(),
            max_model_len=config.data.max_prompt_tokens + self.max_tokens, max_num_seqs=config.rollout.max_sequences,
            kv_cache_memory_bytes=int(config.rollout.kv_cache_gib * 2**30), enable_sleep_mode=self.on_cuda,
            # The cache's size being given, this is only a check of free memory, which the trainer's share would fail.
            gpu_memory_utilization=0.05, enforce_eager=config.rollout.eager or not self.on_cuda)
        cache = self.llm.llm_engine.vllm_config.cache_config
        tokens, longest = cache.num_gpu_blocks * cache.block_size, self.llm.llm_engine.model_config.max_model_len
        self.summary = (f"KV cache of a replica: {tokens:,} tokens, {tokens // longest:,} of the longest responses at "
                        f"once; rollout.max_sequences is {config.rollout.max_sequences}")
        self.sleep()

    def generate(self, prompts: Mapping[str, npt.ArrayLike], *, step: int, samples: int, temperature: float,
                 begun: Mapping[tuple[str, int], Sample] | None = None, round: int = 1
                 ) -> Iterator[dict[tuple[str, int], Sample]]:
        """`samples` responses to each prompt of this replica, begun in the order given and handed over as they finish:
        after each pass of vLLM those, often none, that it finished, by the prompt's name and the sample. `begun` are
        responses of earlier steps, of which the finished ones come first and the others go on. A step that generates
        more than once, other prompts each time, counts its rounds.

        Every rank of a replica calls it with the same arguments and gets the same. Whoever stops before the end calls
        `interrupt`. Raises RuntimeError when vLLM cannot forget what it cached.
        """
        if not prompts:
            return
        begun = begun or {}
        yield {key: sample for key, sample in begun.items() if sample.finished}
        # Old weights made what is cached; and what was generated before (by a run that was not killed) must not matter.
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM's prefix cache is in use while nothing is generated")
        if not self.on_cuda:
            again = f", round {round}" if round > 1 else ""
            torch.manual_seed(stream(self.seed, step, f"replica {self.replica} of {self.replicas}{again}"))
        engine = self.llm.llm_engine
        for i, prompt in prompts.items():
            tokens, seed = np.asarray(prompt, np.int32), stream(self.seed, step, i)
            for j in range(samples):  # requests of their own: vLLM's `n` keeps the first until the last is finished
                before = begun.get((i, j)) or Sample(tokens, np.empty(0, np.int32), np.empty(0, np.float32),
                                                     finished=False)
                if before.finished:
                    continue
                self._before[f"{j} {i}"] = before
                params = SamplingParams(
                    temperature=temperature, max_tokens=self.max_tokens - len(before.tokens),
                    stop_token_ids=self.stop_ids, seed=seed + j if self.on_cuda else None, logprobs=0,
                    flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
                add_request(engine, f"{j} {i}", tokens.tolist(), params, self.stop, before.tokens.tolist())
        while engine.has_unfinished_requests():
            yield dict(self._response(output) for output in engine.step())

    def interrupt(self) -> dict[tuple[str, int], Sample]:
        """Stop generating. Returns what is unfinished, by prompt and sample, as far as it has come."""
        engine = self.llm.llm_engine
        outputs = [request.make_request_output([], None, FinishReason.ABORT, None)
                   for request in engine.output_processor.request_states.values()]
        engine.abort_request([output.request_id for output in outputs])
        return dict(self._response(output) for output in outputs)

    def _response(self, output: RequestOutput) -> tuple[tuple[str, int], Sample]:
        j, i = output.request_id.split(" ", 1)
        before = self._before.pop(output.request_id)
        (completion,) = output.outputs
        tokens = np.concatenate([before.tokens, np.asarray(completion.token_ids, np.int32)])
        logprobs = np.concatenate([before.rollout_logprobs, np.asarray(completion.logprobs.logprobs, np.float32)])
        why = completion.finish_reason
        return (i, int(j)), Sample(before.prompt_tokens, tokens, logprobs, truncated=why == "length",
                                   stale=len(before.tokens), finished=why != "abort")

    def sync(self) -> None:
        """After an update: bring the weights up to date. Nothing moves where they are shared. Collective."""
        if self.on_cuda and not self.weights.aliased:
            self._make_room()
            self.llm.wake_up(tags=["weights"])
        self.weights.sync()
        self.current = True

    def sleep(self) -> None:
        """Free the KV cache (CUDA only), and vLLM's own weights where it has any: the next `sync` fills them anew."""
        if self.on_cuda:
            torch.cuda.synchronize()  # vLLM schedules ahead: a batch that nobody needs may still use the cache
            self.llm.sleep(level=1 if self.weights.aliased else 2)  # level 1 would keep a copy of them in host memory
            self.current, self.awake = self.weights.aliased, False

    def wake(self) -> None:
        """Make ready to generate, if it is not. Collective."""
        if self.on_cuda and not self.awake:
            if not self.current:
                self.sync()
            self._make_room()
            self.llm.wake_up()
            self.awake = True

    def _make_room(self) -> None:
        """Give back what torch keeps of an update's memory: vLLM's sleeping memory is mapped beside torch's cache."""
        if self.on_cuda:
            torch.cuda.empty_cache()
