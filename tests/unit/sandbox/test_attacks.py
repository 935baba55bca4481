"""What the sandbox does to programs that do not play along. Each is contained, passes nothing that it should not, and
leaves the sandbox ready for the next one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srpo.sandbox import Limits, judge
from srpo.sandbox.process import Program, Sandbox
from srpo.sandbox.verdict import _warm
from srpo.sandbox.wire import MAX_DEPTH, Unsupported, decode, encode, loads

TESTS = {"kind": "function", "entry_point": "f", "cases": [{"args": [1], "expected": 2}]}
PRINTS = {"kind": "stdio", "cases": [{"input": "", "output": "1"}]}
QUICK = Limits(wall=2.0, cpu=60)


def reason(program, tests=TESTS, limits=QUICK):
    verdict = judge(program, tests, limits=limits)
    assert verdict.passed == 0 and verdict.seconds < limits.wall + 5
    return verdict.reason


@pytest.fixture(autouse=True)
def the_sandbox_still_works():
    yield
    assert judge("def f(x):\n    return x + 1", TESTS).passed == 1


@pytest.mark.parametrize(("program", "why"), [
    ("while True: pass", "time limit"),
    ("import time\ntime.sleep(1000)", "time limit"),
    ("def f(x):\n    while True: pass", "time limit"),
    ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
     "while True: pass", "time limit"),
    ("def f(x):\n    return 'x' * 10**8", "value too large"),
    ("def f(x):\n    return list(range(10**6))", "value too large"),
    ("def f(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y", "nested too deeply"),
    ("def f(x):\n    y = []\n    y.append(y)\n    return y", "nested too deeply"),
    ("x = bytearray(10**11)", "MemoryError"),
    ("def f(x):\n    return 10**10**6", "integer too large"),
    ("import os\nos._exit(0)", "ended early"),
    ("import os\ndef f(x):\n    os._exit(0)", "ended early"),
    ("raise SystemExit(0)", "SystemExit"),
    ("def f(x):\n    raise SystemExit(0)", "SystemExit"),
    ("import os\ndef f(x):\n    os.close(3)", "ended early"),
    ("import ctypes\nctypes.string_at(0)", "ended early"),
    ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)", ""),
])
def test_stopped_with_a_reason(program, why):
    assert why in reason(program)


@pytest.mark.parametrize("program", [
    "while True: print('x' * 1000)",
    "import os\nwhile True: os.write(1, b'x' * 100000)",
    "import threading\nthreading.Thread(target=lambda: [print('x' * 1000) for _ in iter(int, 1)]).start()\n"
    "while True: pass",
])
def test_endless_output(program):
    assert "too much output" in reason(program, PRINTS)


def test_processor_time_is_limited_apart_from_wall_time():
    assert "ended early" in reason("while True: pass", limits=Limits(wall=60.0, cpu=1))


@pytest.mark.parametrize("program", [
    "import os\nwhile True: os.fork()",
    "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass",
    "import subprocess\nsubprocess.Popen(['sleep', '1000'])",
    "import os\nos.execv('/bin/sleep', ['sleep', '1000'])",
    "import os\nos.posix_spawn('/bin/sleep', ['sleep', '1000'], {})",
    "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    "import os\nos.setsid()",
    "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "import os, signal\nos.killpg(0, signal.SIGKILL)",
    "import socket\nsocket.create_connection(('127.0.0.1', 1), timeout=1)",
    "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0): raise PermissionError",
    "import os\nos.setuid(65534) if os.getuid() == 0 else os.setuid(0)",
    "import os\nos.chroot('.')",
    "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "import resource, os\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
])
def test_rights_that_a_program_does_not_have(program):
    words = ("PermissionError", "Operation not permitted", "not allowed to raise")
    why = reason(program)
    assert any(word in why for word in words), why


def test_threads_are_allowed_but_bounded():
    assert judge("import threading\nout = []\ndef f(x):\n    t = threading.Thread(target=lambda: out.append(2))\n"
                 "    t.start(); t.join()\n    return out[0]", TESTS).passed == 1
    assert reason("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(100,)).start()")


ALWAYS_EQUAL = "class E:\n    __eq__ = lambda s, o: True\n    __hash__ = lambda s: 0\n    __bool__ = lambda s: True\n"


@pytest.mark.parametrize("program", [
    ALWAYS_EQUAL + "def f(x):\n    return E()",
    ALWAYS_EQUAL + "def f(x):\n    return [E()]",
    "class I(int):\n    __eq__ = lambda s, o: True\ndef f(x):\n    return I(7)",
    "class S(str): pass\ndef f(x):\n    return S('2')",
    "def f(x):\n    return True",
    "import builtins, json\nbuiltins.print = json.dumps = lambda *a, **k: '{\"value\": \"passed\"}'\n"
    "def f(x):\n    return 7",
    "import sys\nfor m in list(sys.modules.values()):\n    if hasattr(m, 'encode'): m.encode = lambda v: 3\n"
    "def f(x): return 7",
    "import os\nos.write(3, b'{\"value\": null}\\n{\"value\": 3}\\n' * 10)\ndef f(x): return 7",
    "import os\ndef f(x):\n    os.write(3, b'{\"value\": {\"tuple\": 5}}\\n')",
    "import os\ndef f(x):\n    os.write(3, b'{\"passed\": 1, \"total\": 1}\\n')",
    "import os\ndef f(x):\n    os.write(3, b'[' * 100000 + b'\\n')",
    "import os\ndef f(x):\n    os.write(3, b'\\xff\\xfe\\n')",
    "import pickle, os\nos.write(3, pickle.dumps(print) + b'\\n')\ndef f(x): return 7",
    "import gc\ndef f(x):\n"
    "    return [o['expected'] for o in gc.get_objects() if type(o) is dict and 'expected' in o][0]",
    "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        if 'expected' in frame.f_locals: return 2\n        frame = frame.f_back",
    "print('passed 1 of 1')\nraise AssertionError",
])
def test_forgeries_buy_nothing(program):
    assert reason(program)
    asserts = {"kind": "assert", "entry_point": "f", "code": "assert f(1) == 2 and f(1) + 0 == 2"}
    if "return True" not in program:
        assert reason(program, asserts)


def test_a_value_that_claims_a_pass_is_only_a_value():
    """The one thing a program can do through its channel is to answer, knowing the arguments only."""
    program = "import os\ndef f(x):\n    os.write(3, b'{\"value\": %d}\\n' % (x + 1))"
    tests = {**TESTS, "cases": [{"args": [1], "expected": 2}, {"args": [5], "expected": 7}]}
    assert judge(program, tests).passed < 2


def test_environment_input_and_descriptors_are_not_the_trainer_s(monkeypatch):
    monkeypatch.setenv("A_SECRET", "s3cret")
    program = ("import os, sys\ndef f(x):\n"
               "    fds = sorted(map(int, os.listdir('/proc/self/fd')))\n"   # the last one is that of listdir itself
               "    return [dict(os.environ), fds, sys.stdin.read(), sys.argv, os.listdir('.'), "
               "'torch' in sys.modules]")
    tests = {**TESTS, "cases": [{"args": [1], "expected": [{}, [0, 1, 2, 3, 4], "", ["solution.py"], [], False]}]}
    assert judge(program, tests).reason == "passed"


def test_the_scratch_folder_is_private_and_removed():
    program = "import os\nopen('x', 'w').write('1')\ndef f(x):\n    return os.getcwd()"
    tests = {"kind": "assert", "entry_point": "f", "code": "import os\nwhere = f(1)\nassert 'srpo-sandbox-' in where\n"
             "assert os.listdir(where) == ['x']\nopen(os.environ['WHERE'], 'w').write(where)"}
    note = Path(os.environ.get("TMPDIR", "/tmp")) / f"where-{os.getpid()}"
    os.environ["WHERE"] = str(note)
    try:
        assert judge(program, tests).reason == "passed"
        assert not Path(note.read_text()).exists()
    finally:
        note.unlink()
        del os.environ["WHERE"]


def test_file_size_is_limited():
    program = "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen('x', 'wb').write(bytes(10**8))"
    assert "OSError" in reason(program)


def test_programs_see_nothing_of_each_other():
    judge("import builtins, math\nbuiltins.leak = math.leak = 2\nopen('leak', 'w')\ndef f(x): return 2", TESTS)
    assert reason("import builtins, math, os\ndef f(x):\n"
                  "    return 2 if hasattr(builtins, 'leak') or hasattr(math, 'leak') or os.path.exists('leak') else 7")


def test_results_do_not_depend_on_the_hash_seed():
    program = "def f(x):\n    return list({'a', 'b', 'c', 'd', 'e'})"
    order = []
    for _ in range(2):
        sandbox = Sandbox()
        with Program(sandbox, program, QUICK) as p:
            p.load()
            order.append(p.call("f", [1], {}))
        sandbox.close()
    assert order[0] == order[1]


def test_a_zygote_that_was_killed_is_replaced():
    judge("def f(x): return 2", TESTS)
    scratch = Path(_warm()._scratch)
    os.kill(_warm()._process.pid, signal.SIGKILL)
    _warm()._process.wait()
    assert scratch.exists()
    assert judge("def f(x): return 2", TESTS).passed == 1
    assert not scratch.exists()


def test_nothing_outlives_a_trainer_that_was_killed(tmp_path):
    code = ("import os, signal, threading\nfrom srpo.sandbox import judge\nfrom srpo.sandbox.verdict import _warm\n"
            f"open({str(tmp_path / 'pid')!r}, 'w').write(f'{{_warm()._process.pid}} {{_warm()._scratch}}')\n"
            "threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()\n"
            "judge('while True: pass', {'kind': 'stdio', 'cases': [{'input': '', 'output': ''}]})")
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    pid, scratch = (tmp_path / "pid").read_text().split()
    deadline = time.monotonic() + 20
    while _session(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _session(int(pid)) == [] and not Path(scratch).exists()


def _session(zygote: int) -> list[int]:
    """Living processes that are the zygote or its children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state != "Z" and (int(entry.name) == zygote or int(parent) == zygote):
                found.append(int(entry.name))
    return found


def test_the_wire_refuses_what_is_no_plain_value():
    for bad in ({"tuple": 1}, {"set": [[1]]}, {"a": 1, "b": 2}, {"unknown": 1}, {"int": "zz"}, {"dict": [[1]]},
                {"bytes": "q"}, {"dict": [[[1], 2]]}, {"complex": ["a"]},
                {"set": [k * (2**61 - 1) for k in range(40)]}):
        with pytest.raises(Unsupported):
            decode(bad)
    with pytest.raises(Unsupported):
        loads(b"[" * 100_000)
    with pytest.raises(Unsupported):
        encode(object())
    deep: list = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(Unsupported):
        encode(deep)
