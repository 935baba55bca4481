"""The soft over-length penalty of DAPO (arXiv 2503.14476, eq. 13)."""

from __future__ import annotations

from srpo.config import Overlong


def overlong(tokens: int, limit: int, config: Overlong) -> float:
    """0 up to `start` tokens, then linearly to `penalty` at `limit` tokens, and no further. Never negative."""
    share = (tokens - config.start) / (limit - config.start)
    return config.penalty * min(max(share, 0.0), 1.0)
