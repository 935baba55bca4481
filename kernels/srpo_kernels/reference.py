"""The oracle: every public function with the same signature, in plain torch whatever is installed.

Only the row statistics of the logits have other implementations, so each of these is the public function with that
choice fixed; srpo_kernels/statistics.py is the arithmetic.
"""

from __future__ import annotations

from functools import partial

from srpo_kernels import logprob, losses
from srpo_kernels.advantage import group_advantage

token_logprobs = partial(logprob.token_logprobs, backend="torch")
linear_token_logprobs = partial(logprob.linear_token_logprobs, backend="torch")
policy_loss = partial(losses.policy_loss, backend="torch")
linear_policy_loss = partial(losses.linear_policy_loss, backend="torch")
grpo_loss = partial(losses.grpo_loss, backend="torch")

__all__ = [
    "group_advantage",
    "grpo_loss",
    "linear_policy_loss",
    "linear_token_logprobs",
    "policy_loss",
    "token_logprobs",
]
