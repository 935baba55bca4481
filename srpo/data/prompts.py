"""Problems to token ids, and token ids to text."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
            raise UserError(f"data.template = 'chat': the tokenizer in {config.model.path} has no chat template; "
                            "use 'srpo'")

    def prompts(self, problems: Sequence[Problem]) -> dict[str, list[int]]:
        """Token ids of each problem's prompt, by id. Raises UserError when one exceeds data.max_prompt_tokens."""
        if self.template == "chat":
            chats = [[{"role": "user", "content": p.prompt}] for p in problems]
            texts = self._hf.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        elif self.template == "srpo":
            texts = [SRPO_TEMPLATE.format(prompt=p.prompt) for p in problems]
        else:
            texts = [p.prompt for p in problems]
        # A chat template writes its own special tokens.
        ids = self._hf(texts, add_special_tokens=self.template != "chat")["input_ids"] if texts else []
        for problem, tokens in zip(problems, ids, strict=True):
            if len(tokens) > self.limit:
                raise UserError(f"problem {problem.id!r}: prompt has {len(tokens)} tokens, data.max_prompt_tokens is "
                                f"{self.limit}; raise it or drop the problem")
        return {p.id: tokens for p, tokens in zip(problems, ids, strict=True)}

    def responses(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Token ids of each worked solution, closed by the end-of-sequence token."""
        ids = self._hf([p.response for p in problems], add_special_tokens=False)["input_ids"]
        return [[*tokens, self._hf.eos_token_id] for tokens in ids]

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
