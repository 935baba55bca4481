"""Reward functions that users should not write."""


def raises(problem, response):
    raise KeyError("no such field")


def sometimes_nan(problem, response):
    return float("nan") if problem.id == "math-0" else 0.0
