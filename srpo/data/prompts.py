"""Problems to token ids, and token ids to text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

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
    """The tokenizer of a Hugging Face directory with a prompt template, as data.template; `limit` is as
    data.max_prompt_tokens, None for none."""

    def __init__(self, model: str | Path, template: str, limit: int | None = None):
        from transformers import AutoTokenizer

        self.template, self.limit = template, limit
        folder = Path(model)
        # Without these, transformers builds a tokenizer of one token rather than complain.
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            raise UserError(f"model {str(model)!r}: there is no tokenizer.json or tokenizer.model in it; "
                            "copy the model's tokenizer files there")
        self._hf = AutoTokenizer.from_pretrained(model)
        eos = self._hf.eos_token_id
        self.stop_ids = _stop_ids(folder, eos)
        self._end = self.stop_ids[0] if eos is None else eos
        if self.template == "chat" and not self._hf.chat_template:
            raise UserError(f"template = 'chat': the tokenizer in {model} has no chat template; use 'srpo'")

    def prompts(self, problems: Sequence[Problem]) -> dict[str, list[int]]:
        """Token ids of each problem's prompt, by id. Raises UserError when one is empty or exceeds
        data.max_prompt_tokens."""
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
            if not tokens:
                raise UserError(f"problem {problem.id!r}: the tokenizer makes no token of its prompt "
                                f"{problem.prompt[:40]!r}; drop the problem, or check the model's tokenizer files")
            if self.limit is not None and len(tokens) > self.limit:
                raise UserError(f"problem {problem.id!r}: prompt has {len(tokens)} tokens, data.max_prompt_tokens is "
                                f"{self.limit}; raise it or drop the problem")
        return {p.id: tokens for p, tokens in zip(problems, ids, strict=True)}

    def responses(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Token ids of each worked solution, closed by the end-of-sequence token (by a stop token of
        generation_config.json where the tokenizer has none)."""
        ids = self._hf([p.response for p in problems], add_special_tokens=False)["input_ids"]
        return [[*tokens, self._end] for tokens in ids]

    def text(self, tokens: list[int]) -> str:
        """A response's text, the closing stop token left out."""
        if tokens and tokens[-1] in self.stop_ids:
            tokens = tokens[:-1]
        return self.decode(tokens)

    def decode(self, tokens: list[int]) -> str:
        """The text of all the tokens, special ones included."""
        return self._hf.decode(tokens)


def _stop_ids(folder: Path, eos: int | None) -> list[int]:
    """The tokenizer's end of sequence and all that generation_config.json names."""
    ids = set() if eos is None else {eos}
    if (file := folder / "generation_config.json").exists():
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as e:
            raise UserError(f"{file}: not valid JSON: {e}") from None
        if not isinstance(settings, dict):
            raise UserError(f"{file}: expected an object, found {type(settings).__name__}")
        named = settings.get("eos_token_id")
        named = named if isinstance(named, list) else [] if named is None else [named]
        if not all(type(i) is int for i in named):
            raise UserError(f"{file}: eos_token_id = {settings['eos_token_id']!r}: must be a token id or a list")
        ids |= set(named)
    if not ids:
        raise UserError(f"{folder}: neither the tokenizer nor generation_config.json names an end-of-sequence token")
    return sorted(ids)
