"""The oracle: every public function with the same signature, in plain torch whatever is installed.

Each is the public function with its backend fixed: the row statistics of statistics.py, and the formulas of losses.py
under autograd, in place of the compiled kernels.
"""

from __future__ import annotations

from functools import partial

from srpo_kernels import advantage, linear, logprob, losses

group_advantage = partial(advantage.group_advantage, backend="torch")
token_logprobs = partial(logprob.token_logprobs, backend="torch")
linear_token_logprobs = partial(linear.linear_token_logprobs, backend="torch")
policy_loss = partial(losses.policy_loss, backend="torch")
linear_policy_loss = partial(linear.linear_policy_loss, backend="torch")
grpo_loss = partial(losses.grpo_loss, backend="torch")

__all__ = [
    "group_advantage",
    "grpo_loss",
    "linear_policy_loss",
    "linear_token_logprobs",
    "policy_loss",
    "token_logprobs",
]
