"""Reward functions of a user, as test_graders.py needs them: well-behaved, and in every way not."""

import os
import signal
import subprocess
import sys
import time


def length(problem, response):
    return len(response)


def worth(problem, response):
    """What the problem says that a yes is worth."""
    return problem.extra["worth"] if response == "yes" else False


def raises(problem, response):
    if "bad" in response:
        raise ValueError("no idea")
    return 1.0


def nan(problem, response):
    return float("nan") if "bad" in response else 1.0


def infinite(problem, response):
    return float("inf") if "bad" in response else 1.0


def none(problem, response):
    return None if "bad" in response else 1.0


def dies(problem, response):
    if "bad" in response:
        os._exit(3)
    return 1.0


def leaves(problem, response):
    if "bad" in response:
        raise SystemExit
    return 1.0


def hangs(problem, response):
    if "bad" in response:
        time.sleep(3600)
    return 1.0


def killed(problem, response):
    """As by the kernel when memory runs out."""
    if "bad" in response:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def talks(problem, response):
    """More than any pipe holds, on both streams, and an error as long."""
    if "bad" in response:
        print("x" * 2_000_000)
        print("x" * 2_000_000, file=sys.stderr)
        raise ValueError("y\n" * 20_000_000)
    return 1.0


def huge(problem, response):
    return "1" * 50_000_000 if "bad" in response else 1.0


def string(problem, response):
    return "much" if "bad" in response else 1.0


def recurses(problem, response):
    return recurses(problem, response) if "bad" in response else 1.0


def hangs_deaf(problem, response):
    """Not to be ended by anything but SIGKILL."""
    if "bad" in response:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(1)
    return 1.0


def leaves_child(problem, response):
    """Hangs, and so does the process that it started."""
    if "bad" in response:
        with open(response.split()[1], "w") as file:
            file.write(str(subprocess.Popen(["sleep", "3600"]).pid))
        time.sleep(3600)
    return 1.0


def dies_with_child(problem, response):
    """Ends its process, but not the one that it started."""
    if "bad" in response:
        with open(response.split()[1], "w") as file:
            file.write(str(subprocess.Popen(["sleep", "3600"]).pid))
        os._exit(3)
    return 1.0


def as_told(problem, response):
    """The second word of a bad response says in which way."""
    return globals()[response.split()[1]](problem, response) if response.startswith("bad") else 1.0


not_a_function = 3
