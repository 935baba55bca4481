"""Random programs: none may harm the host, and every verdict must be the one that is known beforehand."""

import random
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from accounts import allowed
from attacks import ATTACKS, FUNCTION, HONEST

from srpo.sandbox import Limits, judge_many, verdict

CALLS = ("import ctypes\nC = ctypes.CDLL(None)\nB = ctypes.create_string_buffer(256)\n"
         "A = [0, 1, 2, 3, -1, 4096, 1 << 20, 0x10000000, B, ctypes.addressof(B), b'/', b'x', b'/etc/passwd']\n")
LINES = [line for attack in ATTACKS.values() for line in attack.program.splitlines() if not line.startswith("while")]


def honest(rng: random.Random) -> tuple[str, int]:
    """A program and its true value for 1."""
    def expression(depth: int) -> str:
        if depth == 0 or rng.random() < 0.2:
            return rng.choice(["x", str(rng.randrange(-99, 99)), "len('ab' * min(x, 99))", "max(x, 3)"])
        a, b = expression(depth - 1), expression(depth - 1)
        return rng.choice([f"({a} + {b})", f"({a} * {b})", f"({a} - {b})", f"({a} if {b} > x else {b})",
                           f"sum([{a}, {b}])", f"({a} // ({b} * {b} + 1))", f"(lambda x: {a})({b})"])

    text = expression(rng.randrange(1, 7))
    return f"def f(x):\n    y = {text}\n    return y", eval(text, {"x": 1})


def system_calls(rng: random.Random) -> str:
    """System calls with random numbers and arguments."""
    calls = [f"C.syscall({rng.randrange(480)}, " + ", ".join(f"A[{rng.randrange(13)}]" for _ in range(6)) + ")"
             for _ in range(rng.randrange(1, 8))]
    return CALLS + "\n".join(calls) + HONEST


def shuffled(rng: random.Random) -> str:
    """Lines of different attacks, each on its own feet."""
    chosen = [line.strip().replace("HOME", "/").replace("VICTIM", "1") for line in rng.choices(LINES, k=8)]
    return "import os, sys\n" + "\n".join(f"try: exec({line!r})\nexcept Exception: pass" for line in chosen) + HONEST


def broken(rng: random.Random) -> str:
    """An attack with bytes changed."""
    text = list(rng.choice(list(ATTACKS.values())).program.replace("HOME", "/").replace("VICTIM", "1"))
    for _ in range(rng.randrange(1, 6)):
        text[rng.randrange(len(text))] = chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x110000)]))
    return "".join(text)


def replies(rng: random.Random) -> str:
    """Messages that look like the sandbox's own, but with random parts."""
    pieces = ["{", "}", "[", "]", '"value"', '"raised"', ":", ",", "null", "1", "-1e999", '"dict"', '"int"', '"0x"',
              "\\n", '"tuple"', '"set"', '"bytes"', '"complex"', '"type"', '"\\\\ud800"', "true", "NaN"]
    forged = "".join(rng.choices(pieces, k=rng.randrange(1, 40)))
    return f"import os\ndef f(x):\n    os.write(3, b'''{forged}\\n''')\n    return 7"


HOSTILE: list[Callable[[random.Random], str]] = [system_calls, shuffled, broken, replies]


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("name", sorted({isolation for _, isolation in allowed()}))
def test_random_programs(name: str, number: int, monkeypatch: pytest.MonkeyPatch):
    """A third are honest and right, or honest and wrong by one; no other may pass, whatever it does: the value that
    would pass is drawn here, and no program ever sees it."""
    monkeypatch.setattr(verdict, "strongest", lambda: name)
    rng = random.Random(number)
    shared = set(Path("/dev/shm").iterdir())
    right = [honest(rng) for _ in range(number // 3)]
    off = [rng.choice([-1, 0, 1]) for _ in right]
    tests = [{**FUNCTION, "cases": [{"args": [1], "expected": value + wrong}]}
             for (_, value), wrong in zip(right, off, strict=True)]
    verdicts = judge_many([(p, t) for (p, _), t in zip(right, tests, strict=True)], limits=Limits(wall=60.0, cpu=60))
    assert [v.passed for v in verdicts] == [int(wrong == 0) for wrong in off]

    programs = [rng.choice(HOSTILE)(rng) for _ in range(number - len(right))]
    items = [(p, {**FUNCTION, "cases": [{"args": [1], "expected": secrets.token_hex(16)}]}) for p in programs]
    verdicts = judge_many(items, limits=Limits(wall=0.3))
    assert not [(p, v) for p, v in zip(programs, verdicts, strict=True) if v.passed]
    assert judge_many([(HONEST, FUNCTION)])[0].passed == 1
    assert {path for path in set(Path("/dev/shm").iterdir()) - shared if "srpo" in path.name} == set()
