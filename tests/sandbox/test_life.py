"""What a program finds in the sandbox, and what is left when programs, sandboxes and trainers end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from accounts import ACCOUNTS, Judge, allowed, descendants, living
from attacks import FUNCTION, HONEST

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
    assert value(judge, program, [{"OMP_NUM_THREADS": "1"}, [0, 1, 2, 3], "", ["solution.py"], [], []]) == "passed"


def test_files_threads_and_libraries_are_there(judge: Judge):
    program = ("import asyncio, os, sqlite3, tempfile, threading, zoneinfo\n"
               "def f(x):\n    out = []\n    asyncio.run(asyncio.sleep(0))\n"
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
NAMES = [name for account, name in allowed() if account == ACCOUNTS[0]]


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


@pytest.mark.parametrize("name", NAMES)
def test_a_zygote_that_dies_under_a_program_says_nothing_about_it(name):
    sandbox = Sandbox(name)
    zygote = max(descendants(sandbox._process.pid))
    killer = threading.Timer(0.5, lambda: os.kill(zygote, signal.SIGKILL))
    killer.start()
    with pytest.raises(OSError, match="the sandbox's process died"):
        _judge(sandbox, "while True: pass", FUNCTION, Limits(wall=60, cpu=60))
    wait_for(lambda: zygote not in living())
    assert _judge(sandbox, HONEST, FUNCTION, Limits()).passed == 1
    sandbox.close()


@pytest.mark.skipif("landlock" not in NAMES, reason="the other has no folder on disk")
def test_a_host_that_cannot_start_a_program_is_no_fault_of_the_program():
    sandbox = Sandbox("landlock")
    os.rmdir(sandbox._scratch)
    with pytest.raises(OSError, match="the sandbox's process could not start a program: .*No such file"):
        _judge(sandbox, HONEST, FUNCTION, Limits())
    assert _judge(sandbox, HONEST, FUNCTION, Limits()).passed == 1
    sandbox.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_sandbox_outlives_the_thread_that_made_it(name):
    with ThreadPoolExecutor(1) as pool:
        sandbox = pool.submit(Sandbox, name).result()
    process = sandbox._process
    assert _judge(sandbox, HONEST, FUNCTION, Limits()).passed == 1
    assert sandbox._process is process and process.poll() is None
    sandbox.close()


@pytest.mark.parametrize("how", ["signal.SIGKILL", "signal.SIGTERM"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_outlives_a_trainer_that_was_killed(tmp_path, name, how):
    code = ("import os, signal, threading\nfrom srpo.sandbox import judge, verdict\nfrom srpo.sandbox.verdict import "
            f"_warm\nverdict.strongest = lambda: {name!r}\n"
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


NO_NAMESPACES = """
import os
from srpo.sandbox import namespaces
namespaces._unshare_user(namespaces._NEWUSER, os.open("/proc", os.O_RDONLY))
open("/proc/sys/user/max_user_namespaces", "w").write("0")
"""
CONTAINER = """
import struct
from srpo.sandbox import confine
refused = ((444, "landlock_create_ruleset"), (272, "unshare on x86_64"), (97, "unshare on aarch64"))
code = [(0x20, 0, 0, 0)]
for number, _ in refused:
    code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050001)]
confine.drop_rights(b"".join(struct.pack("HBBI", *i) for i in code + [(0x06, 0, 0, 0x7FFF0000)]))
"""
JUDGE = f"""
from srpo.doctor import sandbox
from srpo.sandbox import allow_unsafe, judge, probe
print(sandbox())
if probe()[0] == "unsafe":
    try:
        judge({HONEST!r}, {FUNCTION!r})
    except Exception as e:
        print(type(e).__name__, e)
    allow_unsafe()
assert judge({HONEST!r}, {FUNCTION!r}).passed == 1
"""


@pytest.mark.parametrize(("host", "says"), [
    (NO_NAMESPACES, ["runs and judges programs; landlock: ", "not namespaces: unshare: No space left on device",
                     "user.max_user_namespaces"]),
    (CONTAINER, ["unsafe: ", "not namespaces: unshare: Operation not permitted; not landlock: Landlock version 0",
                 "Refused this host cannot isolate programs", "set reward.allow_unsafe_sandbox: true"]),
])
def test_a_host_that_allows_less(host, says):
    """Falls back, or refuses; doctor and log say why."""
    done = subprocess.run([sys.executable, "-c", host + JUDGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(words in done.stdout for words in says), done.stdout
    assert "programs run in isolation" in done.stderr


GRADE = """
from srpo.config import Reward
from srpo.data.schema import Problem
from srpo.rewards.compose import Graders, Response
tests = {"kind": "assert", "entry_point": "f", "code": "assert f(1) == 2"}
problem = Problem(id="1", domain="code", prompt="", answer=None, tests=tests, response=None)
for allowed in (True, False):
    graders = Graders(Reward(style="think_answer", allow_unsafe_sandbox=allowed), 100, 1)
    print(graders.grade([Response(problem, "</think>\\n```python\\ndef f(x): return 2\\n```", 5, False)])[0].correct)
"""


def test_a_run_on_such_a_host_stops_and_names_the_setting():
    """Not a problem of this or that program."""
    done = subprocess.run([sys.executable, "-c", CONTAINER + GRADE], capture_output=True, text=True)
    assert done.stdout == "1.0\n"
    assert done.stderr.splitlines()[-1].startswith("srpo.errors.UserError: this host cannot isolate programs")
