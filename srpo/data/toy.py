"""The quickstart's world: a byte tokenizer, a small untrained Qwen2, and problems it can learn in minutes.

    python -m srpo.data.toy DIR [--seed N]

writes DIR/model (an ordinary Hugging Face directory), DIR/train.jsonl, DIR/eval.jsonl (held out: no problem of it is
in the other files) and DIR/worked.jsonl. Maths is `a+b+c`; code is a two-step function of x, graded by running it.

The worked solutions mix two manners, as a base model does. Careful ones write each step out and are right; hasty ones
skip to an answer that is often wrong. The warm-started policy therefore solves some samples of a problem and not
others, and reinforcement learning can find out which manner pays: responses grow longer as they get better.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

CAREFUL = {"math": 0.4, "code": 0.35}
"""Share of worked solutions that write the steps out."""
HASTY_RIGHT = 0.15
"""Share of hasty worked solutions that happen to be right."""
TRAIN, HELD_OUT, WORKED = 128, 48, 4000
"""Problems a domain to train on, held-out problems a domain, and worked solutions a domain."""

PIECES = ["<think>", "</think>", "<answer>", "</answer>", "\n```python\n", "\n```\n", "def f(x):\n", "    return "]
"""Longer than a character, but one token each."""


def write(folder: Path, seed: int) -> None:
    """Write the model, its tokenizer, and the three data files into `folder`. Deterministic in `seed`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model", seed)
    rng = random.Random(seed)
    train: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    worked: list[dict[str, Any]] = []
    for domain, make, solve in (("math", all_sums(), solve_sum), ("code", all_functions(), solve_function)):
        rng.shuffle(make)
        problems = [{"id": f"{domain}-{i}", "domain": domain, **p} for i, p in enumerate(make)]
        held_out += problems[:HELD_OUT]
        train += problems[HELD_OUT : HELD_OUT + TRAIN]
        for i in range(WORKED):
            problem = rng.choice(problems[HELD_OUT:])
            row = {"id": f"{domain}-worked-{i}", "domain": domain, "prompt": problem["prompt"]}
            worked.append({**row, "response": solve(problem, rng)})
    for name, rows in (("eval", held_out), ("worked", worked), ("train", train)):  # train last: make looks for it
        keep = ("id", "domain", "prompt", "answer", "tests", "response")
        lines = (json.dumps({k: r[k] for k in keep if k in r}) for r in rows)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


# -- maths: a sum of three, the partial sum written out ------------------------------------------------------------


def all_sums() -> list[dict[str, Any]]:
    return [{"prompt": f"{a}+{b}+{c}=<think>", "answer": str(a + b + c), "terms": (a, b, c)}
            for a in range(1, 8) for b in range(1, 8) for c in range(1, 8)]


def solve_sum(problem: dict[str, Any], rng: random.Random) -> str:
    a, b, c = problem["terms"]
    if rng.random() < CAREFUL["math"]:
        thought, answer = f"{a}+{b}={a + b},{a + b}+{c}={a + b + c}", a + b + c
    else:
        thought, answer = "", a + b + c
        if rng.random() >= HASTY_RIGHT:
            answer = max(0, answer + rng.choice([-3, -2, -1, 1, 2, 3]))
    return f"{thought}</think><answer>{answer}</answer>"


# -- code: two operations in a row, described in words --------------------------------------------------------------

OPERATIONS = {"add": "+", "sub": "-", "mul": "*"}


def all_functions() -> list[dict[str, Any]]:
    """Prompts like `f: add 3, mul 4` with tests at five points."""
    problems = []
    for first, s1 in OPERATIONS.items():
        for second, s2 in OPERATIONS.items():
            for i in range(2, 10):
                for j in range(2, 10):
                    expression = f"(x{s1}{i}){s2}{j}"
                    cases = [{"args": [x], "expected": eval(expression, {"x": x})} for x in (-7, -1, 0, 3, 12)]
                    tests = {"kind": "function", "entry_point": "f", "cases": cases}
                    problems.append({"prompt": f"f: {first} {i}, {second} {j}<think>", "tests": tests,
                                     "steps": (s1, i, s2, j)})
    return problems


def solve_function(problem: dict[str, Any], rng: random.Random) -> str:
    s1, i, s2, j = problem["steps"]
    thought = ""
    if rng.random() < CAREFUL["code"]:
        thought = f"x{s1}{i},{s2}{j}"
    elif rng.random() >= HASTY_RIGHT:
        wrong = rng.randrange(3)
        if wrong == 0:
            s2 = rng.choice([s for s in "+-*" if s != s2])
        elif wrong == 1:
            j = rng.choice([k for k in range(2, 10) if k != j])
        else:
            i = rng.choice([k for k in range(2, 10) if k != i])
    program = f"\n```python\ndef f(x):\n    return (x{s1}{i}){s2}{j}\n```\n"
    return f"{thought}</think><answer>{program}</answer>"


# -- model and tokenizer --------------------------------------------------------------------------------------------


def write_model(folder: Path, seed: int) -> None:
    """An untrained Qwen2 (4 layers of 128, 0.8 M parameters) and a byte tokenizer with a few longer pieces."""
    import torch
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    characters = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=characters, merges=[], pad_token="<pad>", eos_token="<eos>", unk_token=None)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in PIECES])
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, dtype="float32"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m srpo.data.toy", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write(args.folder, args.seed)


if __name__ == "__main__":
    main()
