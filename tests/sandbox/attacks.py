"""Attacks: programs, and the outcome that each must have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FUNCTION = {"kind": "function", "entry_point": "f", "cases": [{"args": [1], "expected": 2}]}
PRINTS = {"kind": "stdio", "cases": [{"input": "", "output": "1"}]}
HONEST = "\ndef f(x): return x + 1"


@dataclass(frozen=True)
class Attack:
    """`reason` is a pattern that the verdict's reason must match; no case may pass. In the program, HOME stands for a
    folder of the account that runs the attack, with a file `secret`, and VICTIM for a process of that account."""

    name: str
    program: str
    reason: str
    tests: dict[str, Any] = None  # type: ignore[assignment]
    wall: float = 20.0
    before: str = ""
    """A program that runs first, passes, and may leave something behind."""


DENIED = "PermissionError|Operation not permitted|not allowed to raise"
HIDDEN = "PermissionError|FileNotFoundError|Read-only|EOPNOTSUPP"
EARLY = "^(case 0: )?the program ended early$"
SHORT = 0.5
LIBC = "import ctypes, os\nC = ctypes.CDLL(None, use_errno=True)\n"


def libc(expression: str) -> str:
    """A program that calls libc and raises what went wrong."""
    return LIBC + f"if ({expression}) < 0:\n    e = ctypes.get_errno(); raise OSError(e, os.strerror(e))" + HONEST


def system(x86_64: int, aarch64: int, arguments: str) -> str:
    return libc(f"C.syscall({x86_64} if os.uname().machine == 'x86_64' else {aarch64}, {arguments})")


def raising(code: str) -> str:
    """What the code yields would show in the verdict's reason."""
    return f"import os, sys\nraise Exception('LEAKED', {code})"


TIME = [
    Attack("endless loop", "while True: pass", "^time limit$", wall=SHORT),
    Attack("sleep", "import time\ntime.sleep(1000)", "^time limit$", wall=SHORT),
    Attack("endless call", "def f(x):\n    while True: pass", "^case 0: time limit$", wall=SHORT),
    Attack("ignored signals", "import signal\nfor s in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT):\n"
           "    signal.signal(s, signal.SIG_IGN)\nwhile True: pass", "^time limit$", wall=SHORT),
    Attack("alarm clock", "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)\n"
           "signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\nwhile True: pass", "^time limit$", wall=SHORT),
    Attack("one long operation", "x = 10 ** 10 ** 8", "^time limit$", wall=SHORT),
    Attack("regular expression", "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')", "^time limit$", wall=SHORT),
    Attack("reads its channel", "import os\nwhile True: os.read(3, 1)", "^time limit$", wall=SHORT),
    Attack("never ends at exit", "import atexit, time\natexit.register(time.sleep, 1000)\n"
           "print(1)", "^case 0: time limit$", PRINTS, wall=SHORT),
    Attack("thread that never ends", "import threading, time\n"
           "threading.Thread(target=time.sleep, args=(1000,)).start()\nprint(1)",
           "^case 0: time limit$", PRINTS, wall=SHORT),
    Attack("thread that holds the lock", "import threading, ctypes\n"
           "threading.Thread(target=lambda: ctypes.PyDLL(None).sleep(1000)).start()\n"
           "while True: pass", "^time limit$", wall=SHORT),
]

RESOURCES = [
    Attack("10 GB at once", "x = bytearray(10 ** 10)", "^MemoryError"),
    Attack("memory in steps", "x = []\nwhile True: x.append(bytearray(1 << 26))", "^MemoryError"),
    Attack("anonymous mapping", "import mmap\nx = mmap.mmap(-1, 10 ** 10)", "OSError|MemoryError"),
    Attack("endless recursion", "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)",
           "ended early|MemoryError|RecursionError|time limit", wall=SHORT),
    Attack("nested brackets", "eval('(' * 10 ** 6)", "MemoryError|SyntaxError|RecursionError|ended early"),
    Attack("fork bomb", "import os\nwhile True: os.fork()", DENIED),
    Attack("vfork", system(58, 220, "0x4111, 0, 0, 0, 0"), DENIED),
    Attack("clone3", LIBC + "n = C.syscall(435, bytes(88), 88)\nraise OSError(ctypes.get_errno(), str(n))",
           "Function not implemented|OSError.*-1"),
    Attack("thread bomb", "import threading, time\ndef g(): time.sleep(100)\n"
           "while True: threading.Thread(target=g).start()", "can't start new thread|ended early|MemoryError"),
    Attack("thread bomb with small stacks", "import threading, time\nthreading.stack_size(32768)\n"
           "def g(): time.sleep(100)\nwhile True: threading.Thread(target=g).start()",
           "can't start new thread|ended early|MemoryError"),
    Attack("one large file", "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
           "open('x', 'wb').write(bytes(10 ** 8))", "File too large|No space left|ended early"),
    Attack("disk fill", "import itertools\nfor i in itertools.count():\n    open(str(i), 'wb').write(bytes(1 << 23))",
           "No space left|ended early"),
    Attack("disk fill by allocation", "import os\nos.posix_fallocate(os.open('x', os.O_CREAT | os.O_RDWR), 0, 1 << 40)",
           "File too large|" + DENIED),
    Attack("many files", "import itertools\nfor i in itertools.count(): open(str(i), 'w').close()",
           "No space left|ended early"),
    Attack("many folders", "import itertools, os\nfor i in itertools.count(): os.mkdir(str(i), 0)",
           "No space left|ended early"),
    Attack("deep folders", "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')",
           "No space left|ended early|time limit", wall=SHORT),
    Attack("all descriptors", "import os\nx = [os.dup(0) for _ in iter(int, 1)]", "Too many open files"),
    Attack("all pipes", "import os\nx = [os.pipe() for _ in iter(int, 1)]", "Too many open files"),
    Attack("endless output", "while True: print('x' * 1000)", "too much output", PRINTS),
    Attack("endless raw output", "import os\nwhile True: os.write(1, b'x' * 100000)", "too much output", PRINTS),
    Attack("output from a thread", "import threading\nthreading.Thread(target=lambda: [print('x' * 1000) for _ in "
           "iter(int, 1)]).start()\nwhile True: pass", "too much output", PRINTS),
    Attack("endless messages", "import os\nwhile True: os.write(3, b'x' * 100000)", "too large"),
    Attack("endless errors", "import os\nwhile True: os.write(2, b'x' * 100000)", "^time limit$", wall=SHORT),
    Attack("huge text", "def f(x): return 'x' * 10 ** 8", "value too large"),
    Attack("huge list", "def f(x): return list(range(10 ** 6))", "value too large"),
    Attack("list that grows as shared", "def f(x):\n    y = []\n    for _ in range(50): y = [y, y]\n    return y",
           "value too large"),
    Attack("huge integer", "def f(x): return 10 ** 10 ** 6", "integer too large"),
    Attack("deep value", "def f(x):\n    y = []\n    for _ in range(10 ** 5): y = [y]\n    return y", "too deep"),
    Attack("value that holds itself", "def f(x):\n    y = []\n    y.append(y)\n    return y", "too deep"),
    Attack("huge error", "raise Exception('x' * 10 ** 8)", "^Exception: x{1,300}$"),
    Attack("limits lifted", "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", DENIED),
    Attack("priority raised", "import os\nos.setpriority(os.PRIO_PROCESS, 0, -20)", DENIED),
]

FILES = [
    Attack("secret file", raising("open('HOME/secret').read()"), HIDDEN),
    Attack("secret file by a link", "import os\nos.symlink('HOME/secret', 'x')\n" + raising("open('x').read()"),
           HIDDEN),
    Attack("secret file by a hard link", "import os\nos.link('HOME/secret', 'x')\n" + raising("open('x').read()"),
           HIDDEN + "|cross-device"),
    Attack("secret file by its parent", "import os\nos.chdir('../../../../../../..')\n"
           + raising("open('.' + 'HOME/secret').read()"), HIDDEN),
    Attack("accounts", raising("open('/etc/passwd').read()"), HIDDEN),
    Attack("list of the root", raising("os.listdir('/')"), DENIED),
    Attack("overwritten file", "open('HOME/secret', 'w').write('x')" + HONEST, HIDDEN),
    Attack("truncated file", "import os\nos.truncate('HOME/secret', 0)" + HONEST, HIDDEN),
    Attack("truncated while read", "import os\nos.open('HOME/secret', os.O_RDONLY | os.O_TRUNC)" + HONEST, HIDDEN),
    Attack("removed file", "import os\nos.remove('HOME/secret')" + HONEST, HIDDEN),
    Attack("renamed file", "import os\nos.rename('HOME/secret', 'HOME/gone')" + HONEST, HIDDEN),
    Attack("new file", "open('HOME/planted', 'w')" + HONEST, HIDDEN),
    Attack("new mode", "import os\nos.chmod('HOME/secret', 0o777)" + HONEST, HIDDEN),
    Attack("new owner", "import os\nos.chown('HOME/secret', 1, 1)" + HONEST, HIDDEN),
    Attack("new times", "import os\nos.utime('HOME/secret', (1, 1))" + HONEST, HIDDEN),
    Attack("new attribute", "import os\nos.setxattr('HOME/secret', 'user.x', b'1')" + HONEST, HIDDEN),
    Attack("attributes read", "import os\nos.listxattr('HOME/secret')" + HONEST, DENIED + "|" + HIDDEN),
    Attack("new flags", system(469, 469, "-100, b'HOME/secret', bytes([128]) + bytes(23), 24, 0"),
           DENIED + "|" + HIDDEN),
    Attack("its own libraries", "import random\nopen(random.__file__, 'a').write('planted')" + HONEST,
           HIDDEN + "|Read-only"),
    Attack("compiled library", "import os, random\nos.remove(random.__cached__)" + HONEST, HIDDEN + "|Read-only"),
    Attack("planted shared memory file", "open('/dev/shm/srpo-attack', 'w')" + HONEST, HIDDEN),
    Attack("device", "import os\nos.mknod('disk', 0o60600, os.makedev(254, 0))", DENIED),
    Attack("device of the host", "open('/dev/vda', 'rb').read(1)", HIDDEN),
    Attack("remounted root", libc("C.mount(0, b'/', 0, 4128, 0)"), DENIED),
    Attack("new root", "import os\nos.chroot('.')", DENIED),
    Attack("file by its handle", system(303, 264, "-100, b'/', bytes([128, 0, 0, 0]) + bytes(200), bytes(4), 0"),
           DENIED),
]

PROCESSES = [
    Attack("environment", raising("open('/proc/self/environ').read()"), HIDDEN),
    Attack("environment of its parent", raising("open(f'/proc/{os.getppid()}/environ').read()"), HIDDEN),
    Attack("environment of the victim", raising("open('/proc/VICTIM/environ').read()"), HIDDEN),
    Attack("memory of the victim", raising("open('/proc/VICTIM/mem', 'rb').read(1)"), HIDDEN),
    Attack("folder of the victim", raising("os.readlink('/proc/VICTIM/cwd')"), HIDDEN),
    Attack("descriptors of its parent", raising("os.listdir(f'/proc/{os.getppid()}/fd')"), HIDDEN),
    Attack("list of processes", raising("os.listdir('/proc')"), HIDDEN),
    Attack("memory by system call", system(310, 270, "VICTIM, bytes(16), 1, bytes(16), 1, 0"), DENIED),
    Attack("ptrace of its parent", libc("C.ptrace(16, os.getppid(), 0, 0)"), DENIED),
    Attack("ptrace of the victim", libc("C.ptrace(16, VICTIM, 0, 0)"), DENIED),
    Attack("killed victim", "import os\nos.kill(VICTIM, 9)" + HONEST, DENIED),
    Attack("killed parent", "import os\nos.kill(os.getppid(), 9)", DENIED),
    Attack("killed group", "import os\nos.killpg(0, 9)", DENIED),
    Attack("everybody killed", "import os\nos.kill(-1, 9)", DENIED),
    Attack("killed by descriptor", "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(VICTIM), 9)", DENIED),
    Attack("signal through a file", "import fcntl\nfcntl.fcntl(3, fcntl.F_SETOWN, VICTIM)", DENIED),
    Attack("signal through a device", "import fcntl, struct\nfcntl.ioctl(3, 0x8901, struct.pack('i', VICTIM))", DENIED),
    Attack("limits of the victim", "import resource\nresource.prlimit(VICTIM, resource.RLIMIT_CPU, (0, 0))", DENIED),
    Attack("pinned victim", "import os\nos.sched_setaffinity(VICTIM, {0})", DENIED + "|ProcessLookupError"),
    Attack("slowed victim", "import os\nos.setpriority(os.PRIO_PROCESS, VICTIM, 19)", DENIED + "|ProcessLookupError"),
    Attack("daemon", "import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True: time.sleep(1)", DENIED),
    Attack("command", "import subprocess\nsubprocess.Popen(['sleep', '1000'])", DENIED),
    Attack("shell", "import os\nif os.system('sleep 1000 &') != 0: raise PermissionError", DENIED),
    Attack("replaced by a command", "import os\nos.execv('/bin/sleep', ['sleep', '1000'])", DENIED),
    Attack("spawned command", "import os\nos.posix_spawn('/bin/sleep', ['sleep', '1000'], {})", DENIED),
    Attack("worker process", "import multiprocessing\nmultiprocessing.Process(target=print).start()", DENIED),
    Attack("outlives its parent", libc("C.prctl(1, 0, 0, 0, 0)"), DENIED),
    Attack("system call of a later kernel", LIBC + "n = C.syscall(470, 0)\n"
           "raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))", "Function not implemented"),
    Attack("own session", "import os\nos.setsid()", DENIED),
    Attack("program in memory", "import os\nos.memfd_create('x')", DENIED),
    Attack("another user", "import os\nos.setuid(0 if os.getuid() else 65534)", DENIED + "|Invalid argument"),
    Attack("capabilities", libc("C.capset(bytes([34, 5, 8, 32, 0, 0, 0, 0]), b'\\xff' * 24)"), DENIED),
    Attack("user namespace", libc("C.unshare(0x10000000)"), DENIED),
    Attack("mount namespace", libc("C.unshare(0x20000)"), DENIED),
    Attack("System V shared memory", libc("C.shmget(0x5A5A, 4096, 0o1600)"), DENIED),
    Attack("System V semaphores", libc("C.semget(0x5A5A, 1, 0o1600)"), DENIED),
    Attack("System V messages", libc("C.msgget(0x5A5A, 0o1600)"), DENIED),
    Attack("removed semaphores", libc("C.semctl(0, 0, 0)"), DENIED),
    Attack("received messages", libc("C.msgrcv(0, bytes(64), 8, 0, 2048)"), DENIED),
    Attack("removed queue", libc("C.syscall(241 if os.uname().machine == 'x86_64' else 181, b'trainer')"), DENIED),
    Attack("list of mounts", system(458, 458, "bytes(64), bytes(64), 8, 0"), DENIED),
    Attack("POSIX messages", system(240, 180, "b'srpo-attack', 66, 0o600, 0"), DENIED),
    Attack("shared memory module", "from multiprocessing import shared_memory\n"
           "shared_memory.SharedMemory('srpo-attack', create=True, size=4096)", DENIED + "|" + HIDDEN),
    Attack("kernel log", libc("C.klogctl(3, ctypes.create_string_buffer(4096), 4096)"), DENIED),
    Attack("kernel programs", system(321, 280, "0, bytes(64), 64"), DENIED),
    Attack("asynchronous system calls", system(425, 425, "8, ctypes.create_string_buffer(120)"), DENIED),
    Attack("performance counters", system(298, 241, "bytes(120), 0, -1, -1, 0"), DENIED),
    Attack("32-bit system calls", "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
           "m.write(bytes.fromhex('b8420000 00cd80c3'))\n"       # mov eax, setsid; int 0x80; ret
           "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()" + HONEST, EARLY),
]

NETWORK = [
    Attack("connection", "import socket\nsocket.create_connection(('127.0.0.1', 22), timeout=1)", DENIED),
    Attack("name look-up", "import socket\nsocket.getaddrinfo('example.com', 80)", "gaierror|PermissionError"),
    Attack("server", "import socket\nsocket.create_server(('', 8000))", DENIED),
    Attack("datagram", "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53))",
           DENIED),
    Attack("raw packets", "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)", DENIED),
    Attack("local socket", "import socket\nsocket.socket(socket.AF_UNIX).connect('/run/docker.sock')", DENIED),
    Attack("datagrams to any path", "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)" + HONEST,
           DENIED),
    Attack("packets to any path", "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)" + HONEST,
           DENIED),
    Attack("name taken", "import socket\na, b = socket.socketpair()\na.bind('\\0srpo-attack')" + HONEST, DENIED),
    Attack("pair of another family", libc("C.socketpair(30, 1, 0, ctypes.create_string_buffer(8))"), DENIED),
    Attack("web page", "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')", DENIED + "|URLError"),
    Attack("kernel's own sockets", "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", DENIED),
]

EQUAL = "class E:\n    __eq__ = lambda s, o: True\n    __hash__ = lambda s: 0\n    __bool__ = lambda s: True\n"
WRONG = "^case 0: wrong answer$"
FORGERIES = [
    Attack("exit before the test", "import os\nos._exit(0)", EARLY),
    Attack("exit in the test", "import os\ndef f(x): os._exit(0)", EARLY),
    Attack("polite exit", "raise SystemExit(0)", "^SystemExit: 0$"),
    Attack("polite exit in the test", "def f(x): raise SystemExit(0)", "^case 0: SystemExit: 0$"),
    Attack("exit without output", "import os\nos._exit(0)", "^case 0: the program ended early$", PRINTS),
    Attack("closed channel", "import os\ndef f(x): os.close(3)", EARLY),
    Attack("crash", "import ctypes\nctypes.string_at(0)", EARLY),
    Attack("abort", "import os\nos.abort()", EARLY),
    Attack("object equal to everything", EQUAL + "def f(x): return E()", "type E"),
    Attack("list of such", EQUAL + "def f(x): return [E()]", "type E"),
    Attack("integer equal to everything", "class I(int):\n    __eq__ = lambda s, o: True\ndef f(x): return I(7)",
           "type I"),
    Attack("class named int", "class int(int):\n    __eq__ = lambda s, o: True\ndef f(x): return int(2)", "type int"),
    Attack("class of a class", "class M(type):\n    __eq__ = lambda s, o: True\n    __hash__ = lambda s: 0\n"
           "class I(int, metaclass=M): pass\ndef f(x): return I(7)", "type I|has no len"),
    Attack("text that is a number", "def f(x): return '2'", WRONG),
    Attack("bool for int", "def f(x): return True", WRONG,
           {"kind": "function", "entry_point": "f", "cases": [{"args": [1], "expected": 1}]}),
    Attack("dictionary that lies", "class D(dict):\n    __eq__ = lambda s, o: True\n    items = lambda s: [(1, 2)]\n"
           "D.__module__, D.__name__ = 'collections', 'Counter'\ndef f(x): return D({1: 3})", WRONG,
           {"kind": "function", "entry_point": "f", "cases": [{"args": [1], "expected": {"1": 2}}]}),
    Attack("not a number", "def f(x): return float('nan')", WRONG),
    Attack("patched builtins", "import builtins, json\nbuiltins.print = json.dumps = json.loads = \\\n"
           "    lambda *a, **k: '{\"value\": \"passed\"}'\ndef f(x): return 7", "Unsupported|malformed|ended|wrong"),
    Attack("patched wire", "import sys\nfor m in list(sys.modules.values()):\n"
           "    if hasattr(m, 'encode'): m.encode = lambda v: 3\ndef f(x): return 7", WRONG),
    Attack("patched type", "import builtins\nbuiltins.type = lambda *a: int\nbuiltins.isinstance = lambda *a: True\n"
           "def f(x): return object()", EARLY),
    Attack("patched imports", "import sys\nclass Any:\n    def __getattr__(s, n): return lambda *a, **k: 2\n"
           "for n in list(sys.modules): sys.modules[n] = Any()\ndef f(x): return 7", WRONG),
    Attack("forged replies", "import os\nos.write(3, b'{\"value\": null}\\n{\"value\": 3}\\n' * 10)\n"
           "def f(x): return 7", WRONG),
    Attack("forged verdict", "import os\ndef f(x): os.write(3, b'{\"passed\": 1, \"total\": 1}\\n')", "malformed"),
    Attack("malformed tag", "import os\ndef f(x): os.write(3, b'{\"value\": {\"tuple\": 5}}\\n')", "malformed"),
    Attack("malformed nesting", "import os\ndef f(x): os.write(3, b'[' * 100000 + b'\\n')", "malformed"),
    Attack("malformed bytes", "import os\ndef f(x): os.write(3, b'\\xff\\xfe\\n')", "malformed"),
    Attack("malformed error", "import os\ndef f(x): os.write(3, b'{\"raised\": [1, {}]}\\n')", "malformed"),
    Attack("colliding keys", "def f(x): return {k * (2 ** 61 - 1) for k in range(10000)}", "colliding"),
    Attack("pickle as a reply", "import pickle, os\nos.write(3, pickle.dumps(print) + b'\\n')\ndef f(x): return 7",
           "malformed"),
    Attack("pickle as a value", "import os, pickle\n"
           "class P:\n    __reduce__ = lambda s: (os.system, ('touch HOME/x',))\n"
           "def f(x): return P()", "type P"),
    Attack("pickled bytes", "import os, pickle\n"
           "class P:\n    __reduce__ = lambda s: (os.system, ('touch HOME/x',))\n"
           "def f(x): return pickle.dumps(P())", WRONG),
    Attack("sent descriptor", "import array, os, socket\ns = socket.socket(fileno=3)\ndef f(x):\n"
           "    s.sendmsg([b'{\"value\": 3}\\n'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0]))])\n",
           WRONG),
    Attack("expected value in memory", "import gc\ndef f(x):\n    return [o['expected'] for o in gc.get_objects() "
           "if type(o) is dict and 'expected' in o][0]", "IndexError"),
    Attack("expected value in frames", "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
           "        for v in list(frame.f_locals.values()):\n"
           "            if type(v) is dict and 'cases' in v: return 2\n"
           "        frame = frame.f_back\n    return 7", WRONG),
    Attack("error named as the tests' own", "def f(x): raise AssertionError('passed')", "AssertionError"),
    Attack("error whose text fails", "class E(Exception):\n    def __str__(s): raise SystemExit\ndef f(x): raise E",
           "case 0: E"),
    Attack("marker printed", "print('passed 1 of 1')\nraise AssertionError", "AssertionError"),
    Attack("marker as output", "print('1 passed')", "wrong output", PRINTS),
    Attack("huge error forged", "import os\nos.write(3, b'{\"raised\": [\"X\", \"' + b'y' * 900000 + b'\"]}\\n')",
           "^X: y{1,300}$"),
    Attack("unprintable error", "raise Exception('\\ud800\\n\\x1b[31m')", r"^Exception:    \[31m$"),
    Attack("end of a loop over results", "def f(x): raise StopIteration", "StopIteration",
           {"kind": "assert", "entry_point": "f", "code": "assert all(map(f, [1, 2]))"}),
    Attack("swallowed by the tests", "import os\ndef f(x): os._exit(0)", "the program ended early",
           {"kind": "assert", "entry_point": "f", "code": "try:\n    f(1)\nexcept BaseException: pass\nassert 1"}),
    Attack("assert on an equal object", EQUAL + "def f(x): return E()", "Unsupported|type E",
           {"kind": "assert", "entry_point": "f", "code": "assert f(1) == 2"}),
    Attack("assert caught in a callback", "def f(g):\n    try: g()\n    except BaseException: pass\n    return 2",
           "Unsupported", {"kind": "assert", "entry_point": "f", "code": "assert f(lambda: 1 / 0) == 2"}),
]

LEAKS = [
    Attack("state left in modules", "import builtins, math\n"
           "def f(x): return 2 if hasattr(builtins, 'leak') or hasattr(math, 'leak') else 7", WRONG,
           before="import builtins, math\nbuiltins.leak = math.leak = 2" + HONEST),
    Attack("file left in the folder", "import os\ndef f(x): return 2 if os.listdir('.') else 7", WRONG,
           before="open('leak', 'w').write('x')" + HONEST),
    Attack("folder left above", "import os\ndef f(x): return 2 if os.path.exists('../leak') else 7", WRONG,
           before="import os\ntry: os.mkdir('../leak')\nexcept OSError: pass" + HONEST),
    Attack("library left changed", "import random\ndef f(x): return 2 if hasattr(random, 'leak') else 7", WRONG,
           before="import random\nrandom.leak = 1\ntry: open(random.__file__, 'a').write('leak = 1')\n"
                  "except OSError: pass" + HONEST),
    Attack("thread left running", "import threading\ndef f(x): return 2 if threading.active_count() > 1 else 7", WRONG,
           before="import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()"
                  + HONEST),
]

ATTACKS = {attack.name: attack for group in (TIME, RESOURCES, FILES, PROCESSES, NETWORK, FORGERIES, LEAKS)
           for attack in group}
