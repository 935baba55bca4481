"""HumanEval's and MBPP's own solutions must pass, and fail with one operator changed.

python tests/sandbox/solutions.py DATA, where DATA holds humaneval/HumanEval.jsonl.gz, mbpp/mbpp.jsonl and
mbpp/sanitized-mbpp.json as their authors publish them. Ends with 1 when a solution fails that is not known to be
broken, or fewer than 90 % of the changed ones do.
"""

import ast
import gzip
import json
import random
import sys
from pathlib import Path

from srpo.prepare.readers import row
from srpo.sandbox import Limits, Verdict, judge_many

FILES = ("humaneval/HumanEval.jsonl.gz", "mbpp/mbpp.jsonl", "mbpp/sanitized-mbpp.json")
_MATCH = "returns a match object where the task asks yes or no"
_CLASS = "its tests build objects of a class that no other solution needs to have"
BROKEN = {
    "mbpp/mbpp/367": _CLASS, "mbpp/mbpp/601": _CLASS, "mbpp/mbpp/927": _CLASS,
    "mbpp/mbpp/596": "its tests use a module that they do not import",
    "sanitized-mbpp/mbpp/596": "its tests use a module that they do not import",
    "sanitized-mbpp/mbpp/737": _MATCH, "sanitized-mbpp/mbpp/787": _MATCH, "sanitized-mbpp/mbpp/794": _MATCH,
}
"""Broken upstream: with these no honest program passes, or the solution passes only by sharing the tests' process."""
OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or,
    ast.Or: ast.And, ast.USub: ast.UAdd, ast.UAdd: ast.USub,
}


def mutate(program: str, rng: random.Random) -> str | None:
    """The program with one of its operators changed; None without any."""
    tree = ast.parse(program)
    places = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            places += [(node.ops, i, op) for i, op in enumerate(node.ops)]
        elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign | ast.UnaryOp) and type(node.op) in OTHER:
            places.append((node.__dict__, "op", node.op))
    if not places:
        return None
    holder, key, op = rng.choice(places)
    holder[key] = OTHER[type(op)]()
    return ast.unparse(tree)


def check(file: Path) -> bool:
    text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
    records = [json.loads(line) for line in text.splitlines()] if ".jsonl" in file.name else json.loads(text)
    rows = [row(record, str(file), file.name) for record in records]
    verdicts = judge_many([(r.solution, r.tests) for r in rows], limits=Limits(wall=30.0, cpu=30))
    failed = [f"{file.stem}/{r.id}" for r, v in zip(rows, verdicts, strict=True) if not passed(v)]
    print(f"{file.name}: {len(rows) - len(failed)} of {len(rows)} solutions pass")
    for r, v in zip(rows, verdicts, strict=True):
        name = f"{file.stem}/{r.id}"
        if name in failed:
            print(f"  {name}: {v.reason}; {BROKEN.get(name, 'NOT KNOWN TO BE BROKEN')}")
    mutants = [(r, mutate(r.solution, random.Random(r.id))) for r, v in zip(rows, verdicts, strict=True) if passed(v)]
    mutants = [(r, program) for r, program in mutants if program]
    verdicts = judge_many([(program, r.tests) for r, program in mutants], limits=Limits(wall=3.0))
    caught = sum(not passed(v) for v in verdicts)
    print(f"  one operator changed: {caught} of {len(mutants)} fail ({caught / len(mutants):.1%})", flush=True)
    return set(failed) <= BROKEN.keys() and caught >= 0.9 * len(mutants)


def passed(verdict: Verdict) -> bool:
    return verdict.passed == verdict.total


if __name__ == "__main__":
    sys.exit(0 if all([check(Path(sys.argv[1]) / name) for name in FILES]) else 1)
