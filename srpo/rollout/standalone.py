"""Sampling from a model as it is on disk: how `srpo prepare` measures difficulty and `srpo eval` evaluates. No trainer,
no shared weights.

Problems come in batches. Seeds are as in engine.py: on CUDA each request has its own, from (seed, problem, sample), and
the next batch begins before the last one ends, so that vLLM has all the sequences that it can decode at once. On CPU
torch is seeded once a batch, and each waits for the one before: what it samples depends on it and the arguments alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from vllm import LLM, RequestOutput, SamplingParams
from vllm.sampling_params import RequestOutputKind

from srpo.data.prompts import Tokenizer
from srpo.data.schema import Problem
from srpo.rollout.precision import own
from srpo.rollout.runner import choose_runner, worker
from srpo.rollout.seeds import stream
from srpo.rollout.stop import StopStrings, add_request

MAX_PROMPT = 2048
"""Tokens of a prompt."""
CPU_CACHE = 2 << 30
"""Bytes of KV cache on CPU, where vLLM would take most of the machine's memory; on CUDA it takes what is free."""


@dataclass(frozen=True)
class Completion:
    """`tokens` counts the closing stop token, which is not in the text; `truncated`: the limit came first."""

    text: str
    tokens: int
    truncated: bool


class StandaloneEngine:
    """A vLLM engine of its own; in a launch of several ranks, one over each `tensor` adjacent ones. `template` is as
    data.template, `dtype` as vLLM's, but auto is the model's own also where that is float32; `stop`: texts that end a
    response, which keeps them."""

    def __init__(self, model: str, template: str, max_tokens: int, *, max_prompt: int = MAX_PROMPT, tensor: int = 1,
                 dtype: str = "auto", stop: Sequence[str] = ()):
        self._tokenizer = Tokenizer(model, template, max_prompt)
        self._max_tokens, self._stop = max_tokens, StopStrings(stop, self._tokenizer)
        self._on_cuda = choose_runner()
        self._llm = LLM(model, dtype=own(Path(model)) if dtype == "auto" else dtype, seed=0, skip_tokenizer_init=True,
                        generation_config="vllm", use_tqdm_on_load=False, max_model_len=max_prompt + max_tokens,
                        tensor_parallel_size=tensor, worker_cls=worker(),
                        distributed_executor_backend="external_launcher" if dist.is_initialized() else "uni",
                        enforce_eager=not self._on_cuda, kv_cache_memory_bytes=None if self._on_cuda else CPU_CACHE)
        self._enough = self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs if self._on_cuda else 1

    def generate(self, batches: Sequence[Sequence[Problem]], samples: int, temperature: float, *, top_p: float = 1.0,
                 seed: int = 0) -> Iterator[dict[tuple[str, int], Completion]]:
        """`samples` responses to each problem, handed over as they finish: after each pass of vLLM those, often none,
        that it finished, by the problem's id and the sample. Every rank of an engine calls it with the same arguments.

        Raises UserError for a prompt that is empty or exceeds `max_prompt`.
        """
        engine = self._llm.llm_engine
        for problems in batches:
            if not engine.has_unfinished_requests() and not self._llm.reset_prefix_cache():
                raise RuntimeError("vLLM's prefix cache is in use while nothing is generated")
            prompts = self._tokenizer.prompts(problems)
            if not self._on_cuda:
                torch.manual_seed(stream(seed, *prompts))
            for i, tokens in prompts.items():
                for j in range(samples):
                    params = SamplingParams(
                        temperature=temperature, top_p=top_p, max_tokens=self._max_tokens,
                        stop_token_ids=self._tokenizer.stop_ids, seed=stream(seed, i) + j if self._on_cuda else None,
                        detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
                    add_request(engine, f"{j} {i}", tokens.tolist(), params, self._stop)
            while engine.get_num_unfinished_requests() >= self._enough:
                yield dict(map(self._completion, engine.step()))
        while engine.has_unfinished_requests():
            yield dict(map(self._completion, engine.step()))

    def _completion(self, output: RequestOutput) -> tuple[tuple[str, int], Completion]:
        j, i = output.request_id.split(" ", 1)
        (completion,) = output.outputs
        tokens = list(completion.token_ids)
        return (i, int(j)), Completion(self._tokenizer.text(tokens), len(tokens), completion.finish_reason == "length")
