"""What a program finds in the sandbox, and what is left when programs, sandboxes and trainers end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks import FUNCTION, HONEST
from conftest import Judge, descendants, living

from srpo.errors import UserError
from srpo.sandbox import Limits, isolation
from srpo.sandbox.process import Program, Sandbox
from srpo.sandbox.verdict import _judge


def value(judge: Judge, program: str, expected: object) -> str:
    return judge(program, {**FUNCTION, "cases": [{"args": [1], "expected": expected}]})["reason"]


def test_environment_input_and_descriptors_are_not_the_trainer_s(judge: Judge):
    program = ("import os, sys\ndef f(x):\n    fds = []\n    for fd in range(256):\n        try: os.fstat(fd)\n"
               "        except OSError: continue\n        fds.append(fd)\n"
               "    return [dict(os.environ), fds, sys.stdin.read(), sys.argv, os.listdir('.'), "
               "sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'srpo', 'pydantic'})]")
    assert value(judge, program, [{}, [0, 1, 2, 3], "", ["solution.py"], [], []]) == "passed"


def test_files_threads_and_libraries_are_there(judge: Judge):
    program = ("import os, sqlite3, tempfile, threading, zoneinfo\ndef f(x):\n    out = []\n"
               "    with tempfile.TemporaryDirectory() as folder:\n"
               "        open(folder + '/a', 'w').write('1')\n        os.rename(folder + '/a', folder + '/b')\n"
               "        t = threading.Thread(target=lambda: out.extend(open(folder + '/b').read()))\n"
               "        t.start(); t.join()\n    open(os.devnull, 'w').write('x')\n    return out + os.listdir('.')")
    assert value(judge, program, ["1"]) == "passed"


def test_an_input_cannot_be_written(judge: Judge):
    program = ("import os\nline = input()\ntry: os.pwrite(0, b'x', 0)\nexcept OSError as e: line += e.strerror\n"
               "print(line)")
    tests = {"kind": "stdio", "cases": [{"input": "a\n" * 100_000, "output": "aOperation not permitted"}]}
    assert judge(program, tests)["reason"] == "passed"


def test_processor_time_is_limited_apart_from_wall_time(judge: Judge):
    assert judge("while True: pass", FUNCTION, wall=60, cpu=1)["reason"] == "the program ended early"


def test_a_value_that_claims_a_pass_is_only_a_value(judge: Judge):
    """The one thing a program can do through its channel is to answer, knowing the arguments only."""
    program = "import os\ndef f(x):\n    os.write(3, b'{\"value\": %d}\\n' % (x + 1))"
    tests = {**FUNCTION, "cases": [{"args": [1], "expected": 2}, {"args": [5], "expected": 7}]}
    assert judge(program, tests)["passed"] < 2


ISOLATION = isolation.probe()[0]
"""Of this account, in the tests below."""


def test_results_do_not_depend_on_the_hash_seed():
    program = "def f(x):\n    return list({'a', 'b', 'c', 'd', 'e'})"
    order = []
    for _ in range(2):
        sandbox = Sandbox(ISOLATION)
        with Program(sandbox, program, Limits()) as p:
            p.load()
            order.append(p.call("f", [1], {}))
        sandbox.close()
    assert order[0] == order[1]


@pytest.mark.parametrize("name", ["namespaces", "landlock", "unsafe"])
def test_a_zygote_that_was_killed_is_replaced(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if name in isolation.probe()[1]:
        with pytest.raises(UserError):
            Sandbox(name)
        return
    sandbox = Sandbox(name)
    for which in (min, max):                                  # the process outside, then the one inside
        processes = descendants(sandbox._process.pid)
        os.kill(which(processes), signal.SIGKILL)
        sandbox._process.wait()
        wait_for(lambda processes=processes: not processes & living().keys())
        assert _judge(sandbox, HONEST, FUNCTION, Limits()).passed == 1
    sandbox.close()


@pytest.mark.parametrize("how", ["signal.SIGKILL", "signal.SIGTERM"])
def test_nothing_outlives_a_trainer_that_was_killed(tmp_path, how):
    code = ("import os, signal, threading\nfrom srpo.sandbox import judge\nfrom srpo.sandbox.verdict import _warm\n"
            f"open({str(tmp_path / 'pid')!r}, 'w').write(f'{{_warm()._process.pid}} {{_warm()._scratch}}')\n"
            f"threading.Timer(0.5, lambda: os.kill(os.getpid(), {how})).start()\n"
            "judge('while True: pass', {'kind': 'stdio', 'cases': [{'input': '', 'output': ''}]})")
    assert subprocess.run([sys.executable, "-c", code]).returncode == -eval(how)
    pid, _, scratch = (tmp_path / "pid").read_text().partition(" ")
    wait_for(lambda: not descendants(int(pid)) and not (scratch and Path(scratch).exists()))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
