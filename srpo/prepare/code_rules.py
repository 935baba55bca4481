"""Which code problems have no place in a sandbox that shows a program nothing: environment, files, network, chance.

What a reference solution does is read from its syntax tree; what the text asks is matched in context, since a random
variable or an e-mail address is often only the subject. A problem without a solution is judged by its text.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import lru_cache

from srpo.prepare.rows import Row
from srpo.prepare.rules import Rule, rule


@lru_cache(256)
def _tree(program: str) -> ast.Module | None:
    try:
        return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _uses(row: Row) -> set[str]:
    """Dotted names that the solution imports or takes from a module: `os`, `os.environ`, `datetime.datetime.now`."""
    tree = _tree(row.solution or "")
    return set(_names(tree)) if tree else set()


def _names(tree: ast.Module) -> Iterator[str]:
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known.update({alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else
                          alias.name.split(".")[0] for alias in node.names})
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            known.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    yield from known.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts = [node.attr]
            value = node.value
            while isinstance(value, ast.Attribute):
                parts.append(value.attr)
                value = value.value
            if isinstance(value, ast.Name) and value.id in known:
                yield ".".join([known[value.id], *reversed(parts)])


def _calls(row: Row, name: str) -> Iterator[ast.Call]:
    tree = _tree(row.solution or "")
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def _from(names: set[str], *modules: str) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for name in names for module in modules)


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
    "Return the size in bytes of a 32-bit integer array.",
], drops=[
    {"solution": "import os\nprint(os.environ)"}, {"solution": "import sys\nprint(sys.getsizeof(1))"},
    {"solution": "import subprocess\nsubprocess.run('ls')"}, {"solution": "from os import getcwd"},
    {"solution": "import platform as p\nprint(p.system())"}, {"solution": "x = exec('import os')"},
    "Write a program to print the Python version.", "Get the value of the environment variable HOME.",
    "Write a function to run a shell command.", {"solution": "import ctypes"}, {"solution": "x = id(3)"},
])
def environment(row: Row) -> bool:
    """Depends on the machine, the interpreter or other processes."""
    names = _uses(row)
    return (_from(names, "os", "subprocess", "platform", "ctypes", "multiprocessing", "signal", "getpass", "psutil",
                  "importlib", "pip", "locale", "resource", "gc", "inspect", "threading")
            or any(n.startswith("sys.") and n.split(".")[1] not in _SYS for n in names)
            or any(next(_calls(row, name), None) for name in ("exec", "__import__", "id"))
            or _asks(row, r"\benvironment variables?\b|\b(?:current|installed|get|print|display)\b[^.]{0,20}\b"
                          r"(?:python version|version of python|operating system|user ?name of)\b"
                          r"|\b(?:shell|system|terminal) commands?\b|\bprint the python version\b"))


_SYS = {"stdin", "stdout", "stderr", "maxsize", "setrecursionlimit", "getrecursionlimit", "exit", "maxunicode",
        "float_info", "byteorder"}


@rule("code", keeps=[
    "Count the open brackets in a string.", "Given a file name as a string, return its extension.",
    {"solution": "import sys\nopen(0).read()"}, {"solution": "def f(s):\n    return s.open()"},
    "Read the input and write the output.", "Find the longest path in the tree.",
    {"solution": "import io\ninput = io.StringIO('a').readline"},
], drops=[
    {"solution": "def f(p):\n    return open(p).read()"},
    {"solution": "from pathlib import Path\nPath('a').read_text()"},
    {"solution": "import shutil"}, "Write a function to read the contents of a text file.",
    "Write a program that writes a list to a file.", "Count the lines of a file.", "Create a directory if missing.",
    {"solution": "import sqlite3"}, "Find all files in the directory.",
])
def file_io(row: Row) -> bool:
    """Reads or writes files. Standard input and output are none."""
    opened = any(not (c.args and isinstance(c.args[0], ast.Constant) and c.args[0].value in (0, 1))
                 for c in _calls(row, "open"))
    return (opened or _from(_uses(row), "pathlib", "shutil", "tempfile", "glob", "fileinput", "zipfile", "tarfile",
                            "sqlite3", "shelve", "dbm", "io.open", "io.FileIO", "linecache")
            or _asks(row, r"\b(?:read|write|open|append|save|load|delete|copy|create|parse)s?\b[^.]{0,40}\b"
                          r"(?:(?:text|csv|json|binary|given|a|an|the|to) )files?\b(?! ?(?:name|extension|path|size))"
                          r"|\blines? (?:of|in|from) (?:a|the) (?:text )?file\b"
                          r"|\b(?:create|list|files in|remove)\b[^.]{0,20}\b(?:directory|folder)\b"))


@rule("code", keeps=[
    "Validate an IPv4 address.", "Given a network of n nodes, find the minimum delay.",
    "Extract the host from a URL.", "Write a regex to match an e-mail address.",
    {"solution": "from urllib.parse import urlparse\nurlparse('a')"}, {"solution": "import html"},
    "Requests arrive at a server at given times; how many overlap?",
    {"solution": "import ipaddress"},
], drops=[
    {"solution": "import requests\nrequests.get('http://a')"}, {"solution": "import urllib.request"},
    {"solution": "import socket"}, {"solution": "from http.client import HTTPConnection"},
    "Download the page at a URL and count its words.", "Send an e-mail to the given address.",
    "Scrape the headlines of a web site.",
    "Make an HTTP request to the given API.",
])
def network(row: Row) -> bool:
    """Talks to other machines; parsing addresses is none of it."""
    return (_from(_uses(row), "socket", "ssl", "requests", "httpx", "aiohttp", "urllib.request", "urllib3", "http",
                  "ftplib", "smtplib", "poplib", "imaplib", "telnetlib", "xmlrpc", "socketserver", "paramiko")
            or _asks(row, r"\b(?:download|fetch|scrape|crawl)s?\b[^.]{0,30}\b(?:page|url|web ?site|internet|web|file)\b"
                          r"|\bsends? (?:an? )?e-?mail\b|\bmakes? an? https? request\b|\bopen a socket\b"))


@rule("code", keeps=[
    "A random walk starts at 0; compute the probability that it returns.",
    "Given a random string, count its vowels.",
    {"solution": "from datetime import datetime\ndatetime(2000, 1, 1)"},
    {"solution": "import random\nrandom.seed(1)\nx = random.random()"},
    "Given the current time as hh:mm, add a minute.",
    {"solution": "import time\ntime.strptime('1', '%d')"},
], drops=[
    {"solution": "import random\ndef f(a):\n    return random.choice(a)"}, {"solution": "import secrets"},
    {"solution": "from random import shuffle"}, {"solution": "import time\ntime.time()"},
    {"solution": "import datetime\ndatetime.datetime.now()"}, {"solution": "import uuid\nuuid.uuid4()"},
    "Generate a random password of n characters.", "Write a function that picks a random element.",
    "Shuffle a list randomly.", "Return today's date.", "Print the current date and time.",
    {"solution": "from datetime import date\nx = date.today()"},
])
def non_determinism(row: Row) -> bool:
    """The right output depends on chance or on the clock."""
    names = _uses(row)
    chance = _from(names, "random", "numpy.random") and not _from(names, "random.seed", "random.Random")
    return (chance or _from(names, "secrets", "uuid.uuid1", "uuid.uuid4", "time.time", "time.time_ns", "time.sleep",
                            "time.perf_counter", "time.localtime", "time.ctime", "timeit")
            or any(re.fullmatch(r"datetime\.(?:.*\.)?(?:now|today|utcnow)", n) for n in names)
            or _asks(row, r"\b(?:generate|pick|choose|select|return|print|get|create|produce)s?\b[^.]{0,25}\b"
                          r"random(?:ly)?\b(?! variable| walk)|\bshuffle\b[^.]{0,30}\brandom(?:ly)?\b"
                          r"|\b(?:return|print|get|display|show)s?\b[^.]{0,15}\b"
                          r"(?:today's date|the current (?:date|time))"))


@rule("code", keeps=[
    {"solution": "import itertools, collections, heapq"}, {"solution": "from functools import lru_cache"},
    {"solution": "from typing import *"},
], drops=[
    {"solution": "import numpy as np"}, {"solution": "from scipy.stats import norm"}, {"solution": "import sympy"},
])
def needs_package(row: Row) -> bool:
    """The reference solution needs more than the standard library."""
    return any(name.split(".")[0] not in sys.stdlib_module_names for name in _uses(row) if name != "__future__")


RULES: list[Rule] = [not_python, network, environment, file_io, non_determinism, needs_package]
