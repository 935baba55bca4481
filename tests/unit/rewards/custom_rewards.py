"""Reward functions of a user, as test_graders.py needs them: well-behaved, and in every way not."""

import os
import time


def length(problem, response):
    return len(response)


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


not_a_function = 3
