"""Which code problems have no place in a sandbox that shows a program nothing: environment, files, network, chance.

What a reference solution does is read from its syntax tree; what the text asks is matched in context, since a random
variable or an e-mail address is often only the subject. A problem without a solution is judged by its text.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache

from srpo.prepare.rows import Row
from srpo.prepare.rules import Rule, rule


@lru_cache(256)
def _tree(program: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the program's author wrote
            return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError):
        return None


@lru_cache(256)
def _uses(program: str | None) -> tuple[frozenset[str], tuple[tuple[str, ast.Call], ...]]:
    """Dotted names that a program imports, uses or takes from a module, as `os.environ` and `datetime.datetime.now`;
    and its calls, by such a name or by the bare one. What is imported by a text is imported too."""
    tree = _tree(program or "")
    if not tree:
        return frozenset(), ()
    nodes = list(ast.walk(tree))
    names: set[str] = set()
    known: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
            known.update((alias.asname or alias.name.split(".")[0],
                          alias.name if alias.asname else alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            known.update((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
    names.update(known.values())
    names.update(name for node in nodes if isinstance(node, ast.Attribute) if (name := _dotted(node, known)))
    calls = tuple((name, node) for node in nodes if isinstance(node, ast.Call)
                  if (name := _dotted(node.func, known) or getattr(node.func, "id", "")))
    first = (call.args[0] for name, call in calls if name in ("__import__", "importlib.import_module") and call.args)
    names.update(arg.value for arg in first if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
    return frozenset(names), calls


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    """The full name of a chain of attributes that begins at something imported; else empty."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([known[node.id], *reversed(parts)]) if isinstance(node, ast.Name) and node.id in known else ""


def _from(row: Row, *modules: str) -> bool:
    """Whether the solution uses any of these or of what is in them."""
    names, _ = _uses(row.solution)
    return any(f"{name}.".startswith(f"{module}.") or (name.endswith(".*") and module.startswith(name[:-1]))
               for name in names for module in modules)


def _beyond(row: Row, module: str, allowed: set[str]) -> bool:
    """Whether the solution uses something else of a module; to import it is not to use it."""
    names, _ = _uses(row.solution)
    return any(name.startswith(f"{module}.") and name.split(".")[1] not in allowed for name in names)


def _calls(row: Row, *names: str) -> Iterator[ast.Call]:
    return (call for name, call in _uses(row.solution)[1] if name in names)


def _asks(row: Row, pattern: str) -> bool:
    return bool(re.search(pattern, re.sub(r"```.*?```", "", row.prompt, flags=re.DOTALL), re.IGNORECASE))


@rule("code", keeps=[
    {"solution": "def f(x):\n    return x"}, {"solution": "print('no parse error')"},
], drops=[
    {"solution": "print 'python 2'"}, {"solution": "def f(x:\n  return x"},
])
def not_python(row: Row) -> bool:
    """The reference solution is no Python 3."""
    return row.solution is not None and _tree(row.solution) is None


@rule("code", keeps=[
    {"solution": "import sys\nprint(sys.stdin.read())"}, {"solution": "import sys\nsys.setrecursionlimit(9999)"},
    {"solution": "import sys\nx = sys.maxsize"}, "Describe the environment of a cell.",
    {"solution": "from sys import stdin\nprint(stdin.read())"}, {"solution": "def f(s):\n    return eval(s)"},
    "Return the size in bytes of a 32-bit integer array.", {"solution": "import os, sys\nprint(sys.stdin.read())"},
    {"solution": "import os\nprint(os.sep.join(os.path.split('a/b')), os.read(0, os.fstat(0).st_size))"},
    {"solution": "import threading\nthreading.Thread(target=print).start()"},
    "Return the most frequent of these shell commands.",
], drops=[
    {"solution": "import os\nprint(os.environ)"}, {"solution": "import sys\nprint(sys.getsizeof(1))"},
    {"solution": "import subprocess\nsubprocess.run('ls')"}, {"solution": "from os import getcwd"},
    {"solution": "import platform as p\nprint(p.system())"}, {"solution": "x = exec('import os')"},
    "Write a program to print the Python version.", "Get the value of the environment variable HOME.",
    "Write a function to run a shell command.", {"solution": "import ctypes"}, {"solution": "x = id(3)"},
    {"solution": "from os import *"}, "Find the size of a tuple in bytes.",
])
def environment(row: Row) -> bool:
    """Depends on the machine, the interpreter or other processes."""
    return (_from(row, "subprocess", "platform", "ctypes", "multiprocessing", "signal", "getpass", "psutil",
                  "importlib", "pip", "locale", "resource", "gc", "inspect", "argparse", "optparse", "tracemalloc")
            or _beyond(row, "os", _OS | _OS_FILES) or _beyond(row, "sys", _SYS)
            or any(_calls(row, "exec", "__import__", "id"))
            or _asks(row, r"\benvironment variables?\b|\b(?:current|installed|get|print|return|display)\b[^.]{0,20}\b"
                          r"(?:python version|version of (?:the )?python|operating system|user ?name of)\b"
                          r"|\b(?:run|execute|invoke)s?\b[^.]{0,20}\b(?:shell|system|terminal) commands?\b"
                          r"|\bcommand[- ]line arguments?\b|\bpython (?:executable|interpreter)\b"
                          r"|\b(?:current )?working directory\b|\bprint the python version\b"
                          r"|\bsize of (?:a|an|the|given) ?(?:given )?(?:tuple|list|dictionary|object)s? in bytes\b"
                          r"|\bhow much memory\b[^.]{0,30}\buses?\b"))


_SYS = {"stdin", "stdout", "stderr", "maxsize", "setrecursionlimit", "getrecursionlimit", "exit", "maxunicode",
        "float_info", "byteorder"}
_OS = {"path", "sep", "linesep", "extsep", "read", "write", "fstat"}
"""Text on paths, and the calls that fast readers of standard input make."""
_OS_FILES = {"listdir", "scandir", "walk", "remove", "unlink", "rename", "replace", "mkdir", "makedirs", "rmdir",
             "removedirs", "open", "stat", "lstat", "access", "chmod", "chdir", "link", "symlink", "truncate",
             *(f"path.{name}" for name in ("exists", "lexists", "isfile", "isdir", "islink", "getsize", "getmtime",
                                           "getatime", "getctime", "abspath", "realpath", "samefile", "expanduser"))}


@rule("code", keeps=[
    "Count the open brackets in a string.", "Given a file name as a string, return its extension.",
    {"solution": "import sys\nopen(0).read()"}, {"solution": "def f(s):\n    return s.open()"},
    "Read the input and write the output.", "Find the longest path in the tree.",
    {"solution": "import io\ninput = io.StringIO('a').readline"}, {"solution": "import os\nos.path.splitext('a.b')"},
    {"solution": "from pathlib import PurePath\nPurePath('a/b').suffix"},
    {"solution": "import gzip\ngzip.compress(b'')"},
], drops=[
    {"solution": "def f(p):\n    return open(p).read()"},
    {"solution": "from pathlib import Path\nPath('a').read_text()"},
    {"solution": "import shutil"}, "Write a function to read the contents of a text file.",
    "Write a program that writes a list to a file.", "Count the lines of a file.", "Create a directory if missing.",
    {"solution": "import sqlite3"}, "Find all files in the directory.",
    {"solution": "import os\nos.listdir('.')"}, {"solution": "from os.path import isfile"},
    {"solution": "import gzip\ngzip.open('a')"}, "Write the text to a file named out.txt.",
])
def file_io(row: Row) -> bool:
    """Reads or writes files. Standard input and output are none."""
    opened = any(not (c.args and isinstance(c.args[0], ast.Constant) and c.args[0].value in (0, 1))
                 for c in _calls(row, "open", "io.open", "codecs.open", "os.fdopen", "builtins.open"))
    return (opened or _from(row, "pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "shutil", "tempfile",
                            "glob", "fileinput", "zipfile", "tarfile", "sqlite3", "shelve", "dbm", "io.FileIO",
                            "linecache", "mmap", "gzip.open", "bz2.open", "lzma.open", "configparser",
                            *(f"os.{name}" for name in _OS_FILES))
            or _asks(row, rf"\b{_FILE_VERBS}s?\b[^.]{{0,40}}\b"
                          r"(?:(?:text|csv|json|binary|log|given|every|all|a|an|the|to) )files?\b"
                          r"(?! ?(?:names?|extensions?|paths?|sizes?|systems?)\b)"
                          r"|\b(?:lines?|words?|characters?) (?:of|in|from) (?:a|the) (?:\w+ )?file\b"
                          r"|\b(?:file|directory|folder) at (?:a|the) (?:given )?path\b"
                          r"|\b(?:create|list|files in|remove|all (?:files|folders))\b[^.]{0,20}"
                          r"\b(?:directory|folder)\b"))


_FILE_VERBS = "(?:read|write|open|append|save|load|delete|remove|copy|create|parse)"


@rule("code", keeps=[
    "Validate an IPv4 address.", "Given a network of n nodes, find the minimum delay.",
    "Extract the host from a URL.", "Write a regex to match an e-mail address.",
    {"solution": "from urllib.parse import urlparse\nurlparse('a')"}, {"solution": "import html"},
    "Requests arrive at a server at given times; how many overlap?",
    {"solution": "import ipaddress"}, {"solution": "from http import HTTPStatus"},
], drops=[
    {"solution": "import requests\nrequests.get('http://a')"}, {"solution": "import urllib.request"},
    {"solution": "import socket"}, {"solution": "from http.client import HTTPConnection"},
    "Download the page at a URL and count its words.", "Send an e-mail to the given address.",
    "Scrape the headlines of a web site.",
    "Make an HTTP request to the given API.", "Send an HTTP GET request.",
    {"solution": "__import__('socket').socket()"},
    {"solution": "import asyncio\nasyncio.open_connection('a', 1)"},
])
def network(row: Row) -> bool:
    """Talks to other machines; parsing addresses is none of it."""
    return (_from(row, "socket", "ssl", "requests", "httpx", "aiohttp", "urllib.request", "urllib3", "http.client",
                  "http.server", "ftplib", "smtplib", "poplib", "imaplib", "nntplib", "telnetlib", "xmlrpc",
                  "socketserver", "paramiko", "webbrowser", "asyncio.open_connection", "asyncio.start_server")
            or _asks(row, r"\b(?:download|fetch|scrape|crawl)s?\b[^.]{0,30}\b(?:page|url|web ?site|internet|web|file)\b"
                          r"|\bsends? (?:an? )?e-?mail\b|\b(?:make|send)s? an? https?(?: \w+)? request\b|\bping the\b"
                          r"|\bopens? a (?:socket|(?:tcp|udp|network) connection)\b"
                          r"|\b(?:query|call) the (?:rest )?api\b"))


@rule("code", keeps=[
    "A random walk starts at 0; compute the probability that it returns.",
    "Given a random string, count its vowels.",
    {"solution": "from datetime import datetime\ndatetime(2000, 1, 1)"},
    {"solution": "import random\nrandom.seed(1)\nx = random.random()"},
    "Given the current time as hh:mm, add a minute.",
    {"solution": "import time\ntime.strptime('1', '%d')"}, {"solution": "import time\ntime.gmtime(7)"},
    "Given the current time and a delay, return the time of arrival.",
    {"solution": "from random import Random\nRandom(7)"},
], drops=[
    {"solution": "import random\ndef f(a):\n    return random.choice(a)"}, {"solution": "import secrets"},
    {"solution": "from random import shuffle"}, {"solution": "import time\ntime.time()"},
    {"solution": "import datetime\ndatetime.datetime.now()"}, {"solution": "import uuid\nuuid.uuid4()"},
    "Generate a random password of n characters.", "Write a function that picks a random element.",
    "Shuffle a list randomly.", "Return today's date.", "Print the current date and time.",
    {"solution": "from datetime import date\nx = date.today()"},
    {"solution": "import random\nrandom.Random().random()"},
    {"solution": "import random\nrandom.seed()"}, {"solution": "import time\ntime.gmtime()"}, "Simulate rolling a die.",
])
def non_determinism(row: Row) -> bool:
    """The right output depends on chance or on the clock."""
    chance = _from(row, "random", "numpy.random") and not any(
        call.args for call in _calls(row, "random.seed", "random.Random", "numpy.random.seed",
                                     "numpy.random.default_rng", "numpy.random.RandomState"))
    now = any(len(call.args) == least for least, names in _NOW for call in _calls(row, *names))
    return (chance or now
            or _from(row, "secrets", "uuid.uuid1", "uuid.uuid4", "random.SystemRandom", "os.urandom", "timeit",
                     *(f"time.{name}" for name in ("time", "time_ns", "sleep", "perf_counter", "perf_counter_ns",
                                                   "monotonic", "process_time")))
            or any(re.fullmatch(r"datetime\.(?:.*\.)?(?:now|today|utcnow)", n) for n in _uses(row.solution)[0])
            or _asks(row, r"\b(?:generate|pick|choose|select|return|print|get|create|produce)s?\b[^.]{0,25}\b"
                          r"random(?:ly)?\b(?! variable| walk| order)|\bshuffle\b[^.]{0,30}\brandom(?:ly)?\b"
                          r"|\bshuffle\b[^.]{0,20}\bat random\b|\bmonte[- ]carlo\b|\bmeasures? how long\b"
                          r"|\bsimulates?\b[^.]{0,20}\b(?:dice|die|coins?|roulette)\b"
                          r"|\bflip a coin\b[^.]*\breturn how\b"
                          r"|\b(?:return|print|get|display|show)s?\b[^.]{0,60}"
                          r"(?<!given )(?<!given the )\b(?:today's date|current (?:date|time|year)|age today)\b"))


_NOW = ((0, ("time.localtime", "time.gmtime", "time.ctime", "time.asctime")), (1, ("time.strftime",)))
"""Functions that take the clock's time when they are given so many arguments."""


@rule("code", keeps=[
    {"solution": "import itertools, collections, heapq"}, {"solution": "from functools import lru_cache"},
    {"solution": "from typing import *"},
], drops=[
    {"solution": "import numpy as np"}, {"solution": "from scipy.stats import norm"}, {"solution": "import sympy"},
])
def needs_package(row: Row) -> bool:
    """The reference solution needs more than the standard library."""
    names, _ = _uses(row.solution)
    return any(name.split(".")[0] not in sys.stdlib_module_names for name in names if name != "__future__")


RULES: list[Rule] = [not_python, network, environment, file_io, non_determinism, needs_package]
