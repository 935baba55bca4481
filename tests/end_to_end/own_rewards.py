"""A verifier of a user's own, for domain other."""


def as_told(problem, response):
    """The problem says how right its responses are; those that are only partly right are so at odd lengths alone."""
    worth = problem.extra["worth"]
    return worth if worth == 1 else worth * (len(response) % 2)
