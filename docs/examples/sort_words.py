"""A task of one's own in domain other (docs/rewards.md): words to put in order, and the function that says how well.

    python docs/examples/sort_words.py > words.jsonl
"""

from __future__ import annotations

import json
import random

from srpo.data.schema import Problem
from srpo.rewards.extract import answer_block

WORDS = "amber birch cedar delta ember fjord grove heath islet jetty knoll larch"


def in_order(problem: Problem, response: str) -> float:
    """The share of the words that stand where they belong; nothing where some were lost or invented."""
    wanted = sorted(problem.extra["words"])
    given = (answer_block(response.rpartition("</think>")[2]) or "").split()
    if sorted(given) != wanted:
        return 0.0
    return sum(a == b for a, b in zip(given, wanted, strict=True)) / len(wanted)


if __name__ == "__main__":
    rng = random.Random(1)
    for i in range(1000):
        words = rng.sample(WORDS.split(), 5)
        prompt = f"Write these words in alphabetical order, with spaces between them: {' '.join(words)}"
        print(json.dumps({"id": f"sort-{i}", "domain": "other", "prompt": prompt, "words": words}))
