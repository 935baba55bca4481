"""The formulas as the papers print them: fp64, one token at a time, differentiated by autograd alone."""

from __future__ import annotations

import torch
from srpo_kernels import PolicyLossConfig
from torch import Tensor


def logprobs(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0, vocab_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [N]."""
    full = torch.log_softmax(logits.double()[:, :vocab_size] / temperature, 1)
    entropy = -(full.exp() * full.masked_fill(full == -torch.inf, 0)).sum(1)
    return full.gather(1, tokens[:, None]).squeeze(1), entropy


def _kl(x: Tensor, estimator: str) -> Tensor:
    return {"k1": x, "k2": x**2 / 2, "k3": torch.exp(-x) - 1 + x}[estimator]


def _policy(logprob: Tensor, ratio: Tensor, advantage: Tensor, config: PolicyLossConfig) -> tuple[Tensor, bool]:
    low, high = 1 - config.clip_low, 1 + config.clip_high
    if config.objective == "cispo":
        return -ratio.detach().clamp(low, high) * advantage * logprob, not low <= ratio <= high
    objective = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    clipped = bool(ratio.clamp(low, high) * advantage < ratio * advantage)
    if config.dual_clip is not None and advantage < 0 and objective < config.dual_clip * advantage:
        objective, clipped = config.dual_clip * advantage, True
    return -objective, clipped


def policy_loss(
    logits: Tensor,
    tokens: Tensor,
    advantages: Tensor,
    cu_seqlens: list[int],
    config: PolicyLossConfig,
    old: Tensor | None = None,
    ref: Tensor | None = None,
    rollout: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Loss, and the sums that the metrics report. GSPO differentiates its sequence ratio itself."""
    lp, entropy = logprobs(logits, tokens, config.temperature)
    mask = torch.ones(len(tokens), dtype=torch.bool) if mask is None else mask
    loss = lp.new_zeros(())
    sums = dict.fromkeys(("policy_loss", "kl", "entropy_sum", "clipped", "tokens"), 0.0)
    sequences = 0
    for start, end in zip(cu_seqlens, cu_seqlens[1:], strict=False):
        rows = [n for n in range(start, end) if mask[n]]
        sequences += bool(rows)
        behind = {n: lp[n].detach() if old is None else old[n].double() for n in rows}
        for n in rows:
            log_ratio = lp[n] - behind[n]
            if config.ratio == "sequence":
                log_ratio = torch.stack([lp[k] - behind[k] for k in rows]).mean()
            policy, clipped = _policy(lp[n], log_ratio.exp(), advantages[n].double(), config)
            if config.tis_cap is not None:
                policy = policy * (behind[n] - rollout[n].double()).exp().clamp(max=config.tis_cap)
            kl = lp.new_zeros(()) if ref is None else _kl(lp[n] - ref[n].double(), config.kl or "k3")
            term = policy + config.kl_coef * kl - config.entropy_coef * entropy[n]
            loss = loss + (term / len(rows) if config.aggregate == "sequence" else term)
            values = {"policy_loss": policy, "kl": kl, "entropy_sum": entropy[n], "clipped": clipped, "tokens": 1}
            for name, value in values.items():
                sums[name] += float(torch.as_tensor(value).detach())
    if normalizer is None:
        normalizer = {"token": sums["tokens"], "sequence": sequences,
                      "constant": sequences * (config.constant_length or 0)}[config.aggregate]
    return loss / normalizer, sums
