"""Problems to token ids, and token ids to text."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from srpo.data.schema import Problem
from srpo.errors import UserError

SRPO_TEMPLATE = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and the answer within <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think> <answer> answer here </answer>.\nUser: {prompt}\nAssistant: <think>"
)
"""The R1-Zero conversation, primed with <think>; SRPO's own is known at third hand only."""

CHUNK = 1000
"""Prompts that are tokenized at a time: what the tokenizer says of each token beside its id takes a hundred bytes."""


class Prompts(Mapping[str, npt.NDArray[np.int32]]):
    """Token ids of prompts by the problem's id, four bytes each; as Python's numbers they would take ten times that.

    `dropped`: how many were left out for their length, in words; empty where none was.
    """

    def __init__(self, ids: Sequence[str], lengths: Sequence[int], tokens: array[int], dropped: str):
        self._place = {id: place for place, id in enumerate(ids)}
        self._edges = np.cumsum([0, *lengths])
        self._tokens = np.frombuffer(tokens, np.int32)
        self._tokens.flags.writeable = False
        self.dropped = dropped

    def __getitem__(self, id: str) -> npt.NDArray[np.int32]:
        place = self._place[id]
        return self._tokens[self._edges[place]:self._edges[place + 1]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


class Tokenizer:
    """The tokenizer of a Hugging Face directory with a prompt template, as data.template; `limit` and `overlong` are
    as data.max_prompt_tokens and data.overlong, no limit being None."""

    def __init__(self, model: str | Path, template: str, limit: int | None = None,
                 overlong: Literal["error", "drop"] = "error"):
        from transformers import AutoTokenizer

        self.template, self.limit, self.overlong = template, limit, overlong
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

    def prompts(self, problems: Sequence[Problem]) -> Prompts:
        """The problems' prompts, in order. Raises UserError when one is empty, and when one exceeds the limit unless
        such prompts are to be dropped and others are left."""
        tokens, lengths, kept = array("i"), array("q"), []
        over: dict[str, int] = {}
        for start in range(0, len(problems), CHUNK):
            chunk = problems[start:start + CHUNK]
            for problem, ids in zip(chunk, self._ids(chunk), strict=True):
                if not ids:
                    raise UserError(f"problem {problem.id!r}: the tokenizer makes no token of its prompt "
                                    f"{problem.prompt[:40]!r}; drop the problem, or check the model's tokenizer files")
                if self.limit is not None and len(ids) > self.limit:
                    over[problem.id] = len(ids)
                else:
                    tokens.extend(ids)
                    lengths.append(len(ids))
                    kept.append(problem.id)
        if over and (self.overlong == "error" or not kept):
            first = next(iter(over))
            raise UserError(
                f"problem {first!r}: prompt has {over[first]} tokens, data.max_prompt_tokens is {self.limit}; so it is "
                f"with {len(over)} of {len(problems)} prompts, the longest has {max(over.values())}. Raise it, or "
                "leave them out with data.overlong: drop")
        dropped = (f"{len(over)} of {len(problems)} prompts are left out (data.overlong: drop): they have more than "
                   f"{self.limit} tokens (data.max_prompt_tokens), the longest {max(over.values())}") if over else ""
        return Prompts(kept, lengths, tokens, dropped)

    def _ids(self, problems: Sequence[Problem]) -> list[list[int]]:
        if self.template == "chat":
            chats = [[{"role": "user", "content": p.prompt}] for p in problems]
            texts = self._hf.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        elif self.template == "srpo":
            texts = [SRPO_TEMPLATE.format(prompt=p.prompt) for p in problems]
        else:
            texts = [p.prompt for p in problems]
        # A chat template writes its own special tokens.
        ids: list[list[int]] = self._hf(texts, add_special_tokens=self.template != "chat",
                                        return_attention_mask=False)["input_ids"]
        return ids

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
