"""Policy-gradient kernels for language models: log-prob gather, group advantages, the GRPO family of losses.

    from srpo_kernels import linear_policy_loss
    loss, metrics = linear_policy_loss(hidden, lm_head.weight, tokens, advantages)

`srpo_kernels.reference` holds the same functions in plain torch; `status()` says what runs here and why.
"""

from __future__ import annotations

from srpo_kernels import reference
from srpo_kernels.advantage import group_advantage
from srpo_kernels.config import PolicyLossConfig, PolicyLossMetrics
from srpo_kernels.dispatch import OpStatus, status
from srpo_kernels.linear import linear_policy_loss, linear_token_logprobs
from srpo_kernels.logprob import token_logprobs
from srpo_kernels.losses import grpo_loss, policy_loss

__all__ = [
    "OpStatus",
    "PolicyLossConfig",
    "PolicyLossMetrics",
    "group_advantage",
    "grpo_loss",
    "linear_policy_loss",
    "linear_token_logprobs",
    "policy_loss",
    "reference",
    "status",
    "token_logprobs",
]
