"""Seeds of random streams that must not overlap."""

from __future__ import annotations

import hashlib


def stream(*key: object) -> int:
    """62 bits, well mixed, of what the stream is for: a sample's index is added to it."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()) >> 2
