"""What the sandbox says of honest programs."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from srpo.errors import UserError
from srpo.sandbox import Limits, check, judge, judge_many, verdict
from srpo.sandbox.verdict import matches

ADD = "def add(a, b):\n    return a + b"


def function(name="add", *cases):
    return {"kind": "function", "entry_point": name,
            "cases": [{"args": args, "expected": expected} for args, expected in cases or [([1, 2], 3)]]}


def asserts(code, name="add"):
    return {"kind": "assert", "entry_point": name, "code": code}


def stdio(*cases):
    return {"kind": "stdio", "cases": [{"input": i, "output": o} for i, o in cases]}


def outcome(program, tests, **limits):
    v = judge(program, tests, limits=Limits(**({"wall": 10.0} | limits)))
    return v.passed, v.total, v.reason


def test_function_cases_are_counted_and_the_first_failure_named():
    tests = function("add", ([1, 2], 3), ([2, 2], 5), ([0, 0], 0), ([1, "x"], 1))
    assert outcome(ADD, tests) == (2, 4, "case 1: wrong answer")
    assert outcome(ADD, function("add", ([1, "x"], 1))) == (
        0, 1, "case 0: TypeError: unsupported operand type(s) for +: 'int' and 'str'")
    assert outcome(ADD, function("sub")) == (0, 1, "case 0: KeyError: 'sub'")
    assert outcome("def add(", function())[2].startswith("SyntaxError")
    assert outcome("import sys; sys.exit(0)", function()) == (0, 1, "SystemExit: 0")


def test_keyword_arguments_and_state_within_a_program():
    program = "n = 0\ndef f(*, by):\n    global n\n    n += by\n    return n"
    tests = {"kind": "function", "entry_point": "f",
             "cases": [{"args": [], "kwargs": {"by": n}, "expected": total} for n, total in ((2, 2), (3, 5))]}
    assert outcome(program, tests) == (2, 2, "passed")
    assert outcome(program, tests) == (2, 2, "passed"), "nothing is left of the run before"


def test_demonstrations_under_main_do_not_run_with_functions():
    assert outcome(ADD + "\nif __name__ == '__main__':\n    raise SystemExit(1)", function())[0] == 1


@pytest.mark.parametrize(("value", "expected", "same"), [
    (3, 3, True), (3, 4, False), (True, 1, False), (1, True, False), (1, 1.0, True), (0.1 + 0.2, 0.3, True),
    (0.3, 0.31, False), (True, 1.0, False), ("1", 1, False), ((1, (2,)), [1, [2]], True), ([1], [1, 2], False),
    ({"a": (1,)}, {"a": [1]}, True), ({"a": True}, {"a": 1}, False), ({"a": 1}, {"b": 1}, False), (None, None, True),
    (None, 0, False), ({1}, [1], False),
    (10**400, 1.0, False), (float("nan"), 1.0, False), (float("inf"), float("inf"), True), ("a", "a", True),
])
def test_matches(value, expected, same):
    assert matches(value, expected) is same


def test_every_plain_type_comes_back_as_itself():
    values = ["(1, [2], {3: (4,)})", "{1, 2}", "frozenset({1})", "b'x'", "10**100", "-2**70", "1j", "float('inf')",
              "None",
              "'\\ud800'", "{'a': {(1, 2): 'b'}}", "True", "[[]]", "''"]
    for value in values:
        tests = asserts(f"x = f()\nassert x == {value} and type(x) is type({value})", "f")
        assert outcome(f"def f():\n    return {value}", tests) == (1, 1, "passed"), value


def test_stdio_compares_lines_without_trailing_blanks():
    program = "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())), ' ')\nprint()"
    assert outcome(program, stdio(("1 2\n3 4\n", "3\n7"), ("", ""), ("5\n", "5\n\n"))) == (3, 3, "passed")
    assert outcome("print(input())", stdio(("a", "a"), ("b", "c"))) == (1, 2, "case 1: wrong output")
    assert outcome("print(input())", stdio(("", ""))) == (0, 1, "case 0: EOFError: EOF when reading a line")
    assert outcome("print(1); raise SystemExit(3)", stdio(("", "1"))) == (0, 1, "case 0: SystemExit: 3")
    assert outcome("if __name__ == '__main__':\n    print(1); exit()", stdio(("", "1")))[0] == 1
    assert outcome("print('é' * 300000)", stdio(("", "é" * 300_000)))[0] == 1


@pytest.mark.parametrize("program", [
    "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print(1))).start()",
    "import atexit, io, sys\nsys.stdout = io.StringIO()\n"
    "atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))\nprint(1)",
    "import sys\nprint(1)\nsys.stdout.close()",
    "import sys\nclass Out:\n    write = sys.stdout.write\nsys.stdout = Out()\nprint(1)",
])
def test_output_is_complete_when_a_script_would_have_ended(program):
    assert outcome(program, stdio(("", "1"))) == (1, 1, "passed")


def test_arguments_may_be_larger_than_values_but_not_endlessly_nested():
    assert outcome("def f(x): return len(x)", function("f", ([[0] * 200_000], 200_000))) == (1, 1, "passed")
    deep: list = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(UserError, match="tests.cases.0.args: value nested too deeply"):
        check(function("f", (deep, 1)))


def test_asserts_run_outside_with_a_proxy():
    assert outcome(ADD, asserts("assert add(1, 2) == 3\nassert add(b=1, a='x'[:0] or 2) == 3")) == (2, 2, "passed")
    assert outcome(ADD, asserts("assert add(1, 2) == 3\nassert add(1, 1) == 3\nassert add([1], [2]) == [1, 2]")) == (
        2, 3, "line 2: assertion failed")
    check = ("import math\ndef check(candidate):\n    assert candidate(1, 2) == 3\n"
             "    assert math.isclose(candidate(.1, .2), .3)\n")
    assert outcome(ADD, asserts(check + "check(add)")) == (1, 1, "passed")
    assert outcome("def add(a, b):\n    return 3", asserts(check + "check(add)")) == (0, 1, "line 5: assertion failed")
    assert outcome("x = 1", asserts("assert add(1, 2) == 3"))[2] == "line 1: KeyError: \"'add'\""


def test_asserts_may_expect_an_exception():
    tests = asserts("try:\n    f(0)\n    raised = False\nexcept ZeroDivisionError:\n    raised = True\nassert raised",
            "f")
    assert outcome("def f(x):\n    return 1 / x", tests) == (1, 1, "passed")
    assert outcome("def f(x):\n    return 1", tests) == (0, 1, "line 6: assertion failed")
    tests = asserts("try:\n    f(b'\\xff')\n    raised = False\nexcept UnicodeDecodeError:\n    raised = True\n"
                    "assert raised", "f")
    assert outcome("def f(x):\n    return x.decode()", tests) == (1, 1, "passed")


def test_tests_that_leave_fail_the_program_and_not_its_judge():
    assert outcome(ADD, asserts("assert add(1, 2) == 3\nraise SystemExit(0)"))[1:] == (1, "line 2: SystemExit: 0")


def test_the_proxy_has_the_function_s_name():
    assert outcome(ADD, asserts("assert add.__name__ == 'add'"))[0] == 1


def test_a_program_that_died_passes_nothing_even_if_the_tests_swallow_it():
    tests = asserts("try:\n    f()\nexcept BaseException:\n    pass\nassert True", "f")
    assert outcome("import os\ndef f():\n    os._exit(0)", tests) == (0, 1, "the program ended early")


@pytest.mark.parametrize(("tests", "message"), [
    ({"kind": "magic"}, "tests.kind = 'magic': choose one of function, stdio, assert"),
    ({"kind": "function", "entry_point": "f", "cases": []}, "tests.cases: missing or empty"),
    ({"kind": "function", "cases": [1]}, "tests.entry_point: missing or empty"),
    ({"kind": "function", "entry_point": "f", "cases": [{"args": []}]}, "tests.cases.0.expected: missing"),
    ({"kind": "stdio", "cases": []}, "tests.cases: missing or empty"),
    ({"kind": "stdio", "cases": [{"output": "1"}]}, "tests.cases.0.input: missing"),
    ({"kind": "assert", "entry_point": "f", "code": "f()"}, "tests.code: contains no assert"),
    ({"kind": "assert", "entry_point": "f", "code": "assert ("}, "tests.code: line 1"),
    ({"kind": "assert", "entry_point": "f", "code": "assert f()\0"}, "tests.code: .*null byte"),
    ({"kind": "assert", "entry_point": "f", "code": ["assert f()"]}, "tests.code: must be str, found list"),
    ({"kind": ["stdio"]}, r"tests.kind = \['stdio'\]: choose one of"),
    ({"kind": "stdio", "cases": {"input": "1", "output": "1"}}, "tests.cases: must be list, found dict"),
    ({"kind": "stdio", "cases": ["1"]}, "tests.cases.0: must be dict, found str"),
    ({"kind": "stdio", "cases": [{"input": "1", "output": 1}]}, "tests.cases.0.output: must be str, found int"),
    ({"kind": "function", "entry_point": "f", "cases": [{"args": 1, "expected": 1}]}, "cases.0.args: must be list"),
])
def test_unusable_tests_are_data_errors(tests, message):
    for use in (check, partial(judge, ADD)):
        with pytest.raises(UserError, match=message):
            use(tests)


def test_waiting_for_a_turn_costs_a_program_no_time():
    sandbox = verdict._warm()
    with ThreadPoolExecutor(1) as pool:
        with sandbox.turn:
            waiting = pool.submit(judge, ADD, function(), limits=Limits(wall=1.0))
            time.sleep(1.1)
        assert waiting.result().reason == "passed"


def test_a_forked_process_has_a_sandbox_of_its_own():
    judge(ADD, function())
    pid = os.fork()
    if pid == 0:
        different = verdict._warm.cache_info().currsize == 0 and judge(ADD, function()).passed == 1
        verdict._warm().close()
        os._exit(0 if different else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert judge(ADD, function()).passed == 1


def test_many_at_once_keep_their_order():
    items = [(f"def add(a, b):\n    return {i % 3}", function()) for i in range(40)]
    assert [v.passed for v in judge_many(items, workers=2)] == [0] * 40
    items = [(f"def add(a, b):\n    return {i % 3 + 1}", function()) for i in range(40)]
    assert [v.passed for v in judge_many(items, workers=2)] == [int(i % 3 == 2) for i in range(40)]
    assert judge_many([]) == []
