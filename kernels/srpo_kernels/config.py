"""What the policy loss computes (PolicyLossConfig) and what it reports (PolicyLossMetrics)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class PolicyLossConfig:
    """The variants of the GRPO loss. Raises ValueError for values that cannot work together.

    With ratio r = exp(logprobs - old_logprobs) and advantage A, a token's loss is
      "clip"   -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)              PPO; separate bounds are DAPO's
      "cispo"  -stop_gradient(clip(r, 1 - clip_low, 1 + clip_high)) A logprob  MiniMax-M1; clip_low = 1: no lower bound
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = None
    """c > 1: for A < 0 the loss of a token is at most c |A| ("clip" only; Ye et al., arXiv 1912.09729)."""
    objective: Literal["clip", "cispo"] = "clip"
    ratio: Literal["token", "sequence"] = "token"
    """"sequence": r is the geometric mean of the sequence's token ratios, with each token's own gradient (GSPO-token,
    arXiv 2507.18071, whose gradient is GSPO's where a sequence has one advantage). Needs cu_seqlens."""
    aggregate: Literal["token", "sequence", "constant"] = "token"
    """"token": sum over tokens / tokens (DAPO). "sequence": mean over sequences of the mean over their tokens (GRPO).
    "constant": sum over tokens / (sequences * constant_length) (Dr. GRPO). Masked tokens and sequences that are masked
    throughout do not count. The last two need cu_seqlens, "constant" only to count sequences without a normalizer."""
    kl: Literal["k1", "k2", "k3"] | None = None
    """Estimator of KL(policy || reference) from x = logprobs - ref_logprobs (Schulman, "Approximating KL divergence"):
    x, x^2 / 2, exp(-x) - 1 + x. As a loss k1 has no gradient on average; k2's is the true one on-policy."""
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    """Weight of an entropy bonus (positive: more entropy)."""
    temperature: float = 1.0
    """The logits are divided by it: the temperature that the tokens were sampled at."""
    tis_cap: float | None = None
    """Truncated importance sampling: a token's policy loss is multiplied by min(exp(old_logprobs - rollout_logprobs),
    tis_cap), without gradient; old_logprobs are the current ones where not given."""
    constant_length: int | None = None
    """The L of "constant", the same for every batch, usually the longest response allowed; unused with a normalizer."""

    def __post_init__(self) -> None:
        choices = {"objective": ("clip", "cispo"), "ratio": ("token", "sequence"),
                   "aggregate": ("token", "sequence", "constant"), "kl": (None, "k1", "k2", "k3")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("temperature", "kl_coef", "entropy_coef"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        for name in ("clip_low", "clip_high", "kl_coef"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("temperature", "tis_cap", "constant_length"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"dual_clip must be above 1, got {self.dual_clip}")
        if self.dual_clip is not None and self.objective == "cispo":
            raise ValueError('dual_clip bounds the "clip" objective; "cispo" has its own bound: leave dual_clip unset')
        if self.kl_coef > 0 and self.kl is None:
            raise ValueError(f"kl_coef is {self.kl_coef} but kl is unset: choose k1, k2 or k3")


@dataclass
class PolicyLossMetrics:
    """Detached tensors on the loss's device; building them causes no synchronization.

    The per-token ones are 0 where masked. The 0-dim ones are sums over unmasked tokens, so that micro-batches and
    ranks add up; divide by `tokens`.
    """

    logprobs: Tensor
    """[N] the policy's log-probability of each token."""
    entropy: Tensor
    """[N] the policy's entropy at each token, in nats."""
    rollout_diff: Tensor | None
    """[N] |logprobs - rollout_logprobs|; None without rollout_logprobs."""
    policy_loss: Tensor
    """The policy term alone, before KL, entropy and aggregation."""
    kl: Tensor
    """By the configured estimator (k3 where none is); 0 without ref_logprobs."""
    entropy_sum: Tensor
    clipped: Tensor
    """Tokens whose ratio was clipped (for "clip": whose gradient is therefore zero)."""
    tokens: Tensor
    """Unmasked tokens."""
