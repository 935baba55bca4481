"""Benchmarks by name: where each is on the hub, which of its records count, and its usual prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from srpo.data.schema import Problem

Record = dict[str, Any]


def _maths(_: Record, problem: Problem, style: str) -> str:
    """The sentence that instruct models know; with the srpo template it would contradict the template's own."""
    asks = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    return problem.prompt + asks if style == "boxed" else problem.prompt


def _humaneval(record: Record, _problem: Problem, _style: str) -> str:
    """EvalPlus's prompt for chat models."""
    return ("Please provide a self-contained Python script that solves the following problem in a markdown code "
            f"block:\n\n```python\n{record['prompt'].strip()}\n```")


def _mbpp(record: Record, problem: Problem, _style: str) -> str:
    """Austin et al. 2021, arXiv 2108.07732, without examples: all three tests are shown."""
    tests = "\n".join(record["test_list"])
    question = record.get("text") or record["prompt"]
    return (f"You are an expert Python programmer, and here is your task: {question.strip()} Your code should pass "
            f"these tests:\n\n```python\n{tests}\n```")


def _livecodebench(_record: Record, problem: Problem, _style: str) -> str:
    """LiveCodeBench's own request in short. Its `class Solution` is a plain function here (srpo/prepare/readers.py)."""
    if (problem.tests or {}).get("kind") == "function":
        return problem.prompt
    return (f"{problem.prompt}\n\nRead the inputs from stdin, solve the problem and write the answer to stdout. Give "
            "the whole program in a markdown code block:\n\n```python\n# YOUR CODE HERE\n```")


def _mbpp_test(record: Record) -> bool:
    """The test split in the numbering of the whole file: 1-10 are prompts, 511-974 validation and training."""
    return 11 <= int(record["task_id"]) <= 510


@dataclass(frozen=True)
class Benchmark:
    """`source` is read as any other (srpo/prepare/files.py); `counts` says which records are in the test split."""

    source: str
    prompt: Callable[[Record, Problem, str], str]
    counts: Callable[[Record], bool] = lambda record: True
    ignores: tuple[str, ...] = ()
    """Fields that are no part of the benchmark."""


BENCHMARKS = {
    "aime24": Benchmark("hf:math-ai/aime24:test-*.parquet", _maths),
    "aime25": Benchmark("hf:math-ai/aime25:test.jsonl", _maths),
    "math500": Benchmark("hf:HuggingFaceH4/MATH-500:test.jsonl", _maths),
    "gsm8k": Benchmark("hf:openai/gsm8k:main/test-*.parquet", _maths),
    "livecodebench": Benchmark("hf:livecodebench/code_generation_lite:test*.jsonl", _livecodebench),
    "humaneval": Benchmark("hf:openai/openai_humaneval:openai_humaneval/test-*.parquet", _humaneval),
    "mbpp": Benchmark("hf:google-research-datasets/mbpp:full/test-*.parquet", _mbpp, _mbpp_test,
                      ("challenge_test_list",)),
}
