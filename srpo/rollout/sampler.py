"""Sampling from a model as it is on disk: how `srpo prepare` measures difficulty. No trainer, no shared weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])

import torch
import torch._dynamo
from vllm import LLM, SamplingParams

from srpo.data.prompts import SRPO_TEMPLATE

MAX_PROMPT = 2048
"""Tokens of a prompt."""
CPU_CACHE = 2 << 30
"""Bytes of KV cache on CPU, where vLLM would take most of the machine's memory; on CUDA it takes what is free."""


class Sampler:
    """A vLLM engine of its own. `template` is as data.template: srpo, chat or plain."""

    def __init__(self, model: str, template: str, max_tokens: int):
        on_cuda = torch.cuda.is_available()
        if not on_cuda:  # as srpo/rollout/engine.py: compiling takes longer than it saves
            torch._dynamo.config.disable = True
        self._llm = LLM(model, seed=0, generation_config="vllm", max_model_len=MAX_PROMPT + max_tokens,
                        distributed_executor_backend="uni", enforce_eager=not on_cuda,
                        kv_cache_memory_bytes=None if on_cuda else CPU_CACHE)
        self._template, self._max_tokens = template, max_tokens

    def sample(self, prompts: Sequence[str], samples: int, temperature: float) -> list[list[str]]:
        """`samples` responses to each prompt. What they are depends on the prompts' order and number too."""
        params = SamplingParams(n=samples, temperature=temperature, max_tokens=self._max_tokens)
        if self._template == "chat":
            outputs = self._llm.chat([[{"role": "user", "content": p}] for p in prompts], params, use_tqdm=False)
        else:
            texts = [SRPO_TEMPLATE.format(prompt=p) if self._template == "srpo" else p for p in prompts]
            outputs = self._llm.generate(texts, params, use_tqdm=False)
        return [[c.text for c in output.outputs] for output in outputs]
