r"""GSM8K's and MATH's own answers, judged against themselves: python references.py DATA

DATA holds gsm8k/{train,test}.jsonl and math/*.jsonl (fields problem, answer) as their authors publish them. Every
answer must be accepted as its reference solution gives it and in other spellings, and no other of MATH in its place:
12,000 pairs that look alike or are drawn by a seed, where equal means equal by hand. Ends with 1 when one is not.
"""

import json
import random
import re
import sys
from collections import defaultdict
from itertools import islice
from pathlib import Path

from srpo.errors import UserError
from srpo.rewards.math import equal, judge

SAME = {frozenset(pair) for pair in (("0.2", "0.20"), ("2.5", "2.50"), ("37.5", "37.50"), ("a=9", "9^\\circ"))}
"""Pairs of MATH's answers that are rightly equal: trailing zeros; a name and a degree sign, which may be left out."""
UNUSABLE = {""}
"""Answers of the mirror that are none."""
OTHERS = ("0.1234567", "(0.123, 4.567)", "0.123, 4.567", "[0.123, 4.567)", "7 < 0.123w")
PAIRS = 12_000


def main() -> int:
    data = Path(sys.argv[1])
    gsm = [row["answer"].rsplit("####", 1) for part in ("train", "test") for row in rows(data / f"gsm8k/{part}.jsonl")]
    rejected = [gold for solution, gold in gsm if not accepts(solution, gold.strip())]
    print(f"GSM8K: {len(gsm) - len(rejected)} of {len(gsm)} answers accepted after their solutions")
    golds = sorted({row["answer"] for file in sorted((data / "math").glob("*.jsonl")) for row in rows(file)} - UNUSABLE)
    misread = [gold for gold in golds if not all(accepts("", gold, given) for given in spellings(gold))]
    print(f"MATH: {len(golds) - len(misread)} of {len(golds)} different answers accepted in every spelling")
    unreadable = [gold for gold in golds if not all(readable(given, gold) for given in OTHERS)]
    print(f"MATH: {len(golds) - len(unreadable)} of {len(golds)} readable beside any other answer")
    wrong = [(a, b) for a, b in alike(golds) if frozenset((a, b)) not in SAME and (same(a, b) or same(b, a))]
    print(f"MATH: {len(wrong)} of {PAIRS} pairs of different answers accepted")
    for failure in (*rejected, *misread, *unreadable, *wrong):
        print(f"  {failure!r}")
    return bool(rejected or misread or unreadable or wrong)


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def accepts(solution: str, gold: str, given: str = "") -> bool:
    try:
        return judge(f"{solution}\nThe answer is $\\boxed{{{given or gold}}}$.", gold).correct == 1.0
    except UserError:
        return False


def same(given: str, gold: str) -> bool:
    try:
        return equal(given, gold)
    except UserError:
        return False                                          # one that `readable` lists


def readable(given: str, gold: str) -> bool:
    try:
        return not equal(given, gold)
    except UserError:
        return False


def spellings(gold: str) -> list[str]:
    """As other authors would write it."""
    return [gold, f" {gold.rstrip('.')}. ", f"${gold}$", re.sub(r"\\frac(?=\{)", r"\\dfrac", gold),
            gold.replace("\\left", "").replace("\\right", ""), re.sub(r"([=+<>])", r" \1 ", gold),
            gold.replace("\\!", ""), gold.replace("\\le ", "\\leq ").replace("\\cup", " \\cup ")]


def alike(golds: list[str]) -> list[tuple[str, str]]:
    """Pairs of answers that begin alike but for their digits, then any, in one order; integers are left out."""
    golds = [gold for gold in golds if not re.fullmatch(r"-?[\d,]+", gold)]
    groups = defaultdict(list)
    for gold in golds:
        groups[re.sub(r"\d+", "0", gold)[:12]].append(gold)
    pairs = {(a, b) for group in groups.values() for i, a in enumerate(group) for b in islice(group, i + 1, i + 4)}
    rng = random.Random(1)
    while len(pairs) < PAIRS:
        pairs.add((rng.choice(golds), rng.choice(golds)))
    return [(a, b) for a, b in sorted(pairs) if a.rstrip(".") != b.rstrip(".")]


if __name__ == "__main__":
    sys.exit(main())
