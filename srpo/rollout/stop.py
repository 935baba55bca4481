"""Stop strings: a response ends with the token that completes one of them.

vLLM's own (SamplingParams.stop) turn every token into text in the process that drives the GPU, once more for its
log-prob, and see nothing of a response before it was interrupted. Here text is made only where a token comes that a
string can end with, of a few tokens, some of which an earlier step may have sampled. It takes the place where vLLM
would turn tokens into text: there it asks after each token whether the request is to stop.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.engine.llm_engine import LLMEngine

from srpo.data.prompts import Tokenizer


class StopStrings:
    """`strings`, none of them empty, in the text that the graders see. `reach`: in how many tokens one can lie."""

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer):
        self.strings, self._tokenizer = strings, tokenizer
        self._last = {string[-1] for string in strings}
        self._ends: dict[int, bool] = {}
        # A token has a byte at least. One more: some tokenizers drop the blank of what they are given first.
        self.reach = 1 + max((len(string.encode()) for string in strings), default=0)

    def completed(self, tokens: list[int]) -> str | None:
        """The string that the last of the tokens completes, the earlier ones holding none."""
        if not tokens or not self._can_end(tokens[-1]):
            return None
        text = self._tokenizer.decode(tokens[-self.reach:])
        return next((string for string in self.strings if string in text), None)

    def _can_end(self, token: int) -> bool:
        """Its text alone may be nothing, or a part of a character."""
        if token not in self._ends:
            text = self._tokenizer.decode([token])
            self._ends[token] = not text or "\ufffd" in text or not self._last.isdisjoint(text)
        return self._ends[token]


class _Watch(IncrementalDetokenizer):
    """Keeps the tokens of a request without making text of them, as vLLM's does where it has no tokenizer."""

    def __init__(self, stop: StopStrings, before: Sequence[int]):
        super().__init__()
        self._stop, self._before = stop, list(before)[-stop.reach:]

    def update(self, new_token_ids: list[int], stop_terminated: bool) -> str | None:
        for token in new_token_ids:
            self.token_ids.append(token)
            if string := self._stop.completed(self._before + self.token_ids[-self._stop.reach:]):
                return string
        return None


def add_request(engine: LLMEngine, name: str, prompt: Sequence[int], params: SamplingParams, stop: StopStrings,
                before: Sequence[int] = ()) -> None:
    """Have vLLM go on after the prompt and the tokens `before`, the response so far, until `params` or `stop` end it.
    The output has the new tokens, with the whole token that completed a string, and is finished for "stop" then."""
    request = engine.add_request(name, tokens_input([*prompt, *before]), params)
    if stop.strings:
        engine.output_processor.request_states[request].detokenizer = _Watch(stop, before)
