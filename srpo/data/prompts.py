"""Problems to token ids, and token ids to text."""

from __future__ import annotations

import json
from pathlib import Path

from srpo.config import Config
from srpo.data.schema import Problem
from srpo.errors import UserError

SRPO_TEMPLATE = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and the answer within <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think> <answer> answer here </answer>.\nUser: {prompt}\nAssistant: <think>"
)
"""The R1-Zero conversation, primed with <think>; SRPO's own is known at third hand only."""


class Tokenizer:
    """The model's tokenizer with the run's prompt template."""

    def __init__(self, config: Config):
        from transformers import AutoTokenizer

        self.template = config.data.template
        self.limit = config.data.max_prompt_tokens
        self._hf = AutoTokenizer.from_pretrained(config.model.path)
        self.stop_ids = _stop_ids(Path(config.model.path), self._hf.eos_token_id)
        if self.template == "chat" and not self._hf.chat_template:
            raise UserError(f"data.template = 'chat': the tokenizer in {config.model.path} has no chat template; use 'srpo'")

    def prompt(self, problem: Problem) -> list[int]:
        """Token ids of a problem's prompt. Raises UserError when they exceed data.max_prompt_tokens."""
        if self.template == "chat":
            text = self._hf.apply_chat_template([{"role": "user", "content": problem.prompt}], tokenize=False,
                                                add_generation_prompt=True)
            ids = self._hf(text, add_special_tokens=False)["input_ids"]
        else:
            text = SRPO_TEMPLATE.format(prompt=problem.prompt) if self.template == "srpo" else problem.prompt
            ids = self._hf(text)["input_ids"]
        if len(ids) > self.limit:
            raise UserError(f"problem {problem.id!r}: prompt has {len(ids)} tokens, data.max_prompt_tokens is {self.limit}; "
                            "raise it or drop the problem")
        return ids

    def response(self, problem: Problem) -> list[int]:
        """Token ids of a worked solution, closed by the end-of-sequence token."""
        return [*self._hf(problem.response, add_special_tokens=False)["input_ids"], self._hf.eos_token_id]

    def text(self, tokens: list[int]) -> str:
        """A response's text, the closing stop token left out."""
        if tokens and tokens[-1] in self.stop_ids:
            tokens = tokens[:-1]
        return self._hf.decode(tokens)


def _stop_ids(folder: Path, eos: int | None) -> list[int]:
    """The tokenizer's end of sequence and all that generation_config.json names."""
    ids = set() if eos is None else {eos}
    if (file := folder / "generation_config.json").exists():
        named = json.loads(file.read_text()).get("eos_token_id") or []
        ids |= set(named if isinstance(named, list) else [named])
    if not ids:
        raise UserError(f"{folder}: neither the tokenizer nor generation_config.json names an end-of-sequence token")
    return sorted(ids)
