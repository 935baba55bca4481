"""Sampling from a model as it is on disk: how `srpo prepare` measures difficulty. No trainer, no shared weights."""

from __future__ import annotations

import os
from collections.abc import Sequence

from srpo.data.prompts import SRPO_TEMPLATE

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


class Sampler:
    """A vLLM engine of its own. `template` is as data.template: srpo, chat or plain."""

    def __init__(self, model: str, template: str, max_tokens: int):
        import torch
        from vllm import LLM

        # As srpo/rollout/engine.py: compiling takes longer than it saves on CPU.
        on_cpu = not torch.cuda.is_available()
        self._llm = LLM(model, seed=0, enforce_eager=on_cpu, generation_config="vllm")
        self._template, self._max_tokens = template, max_tokens

    def sample(self, prompts: Sequence[str], samples: int, temperature: float) -> list[list[str]]:
        """`samples` responses to each prompt. What they are depends on the prompts' order and number too."""
        from vllm import SamplingParams

        params = SamplingParams(n=samples, temperature=temperature, max_tokens=self._max_tokens, seed=0)
        if self._template == "chat":
            outputs = self._llm.chat([[{"role": "user", "content": p}] for p in prompts], params, use_tqdm=False)
        else:
            texts = [SRPO_TEMPLATE.format(prompt=p) if self._template == "srpo" else p for p in prompts]
            outputs = self._llm.generate(texts, params, use_tqdm=False)
        return [[c.text for c in output.outputs] for output in outputs]
