"""Values as JSON: exact built-in types only, bounded in size and depth, both ways.

Nothing is pickled and no class of the untrusted side is ever rebuilt, so an object's __eq__, __hash__ or __reduce__
never runs on the trusted side. Imports only json: the untrusted side loads this file too.
"""

from __future__ import annotations

import json
from typing import Any

MAX_BYTES = 1 << 20
MAX_DEPTH = 60
MAX_INT_BITS = 40_000


class Unsupported(Exception):
    """A value that cannot cross: wrong type, too large, too deep, or malformed."""


def encode(value: Any, max_bytes: float = MAX_BYTES) -> Any:
    """A tree that `json.dumps` accepts. Raises Unsupported."""
    return _encode(value, 0, [max_bytes])


def decode(tree: Any) -> Any:
    """The value of an `encode`d tree that came from anywhere. Raises Unsupported."""
    try:
        return _decode(tree, 0)
    except (ValueError, TypeError, KeyError, OverflowError) as e:
        raise Unsupported(f"malformed value: {type(e).__name__}") from None


def loads(line: bytes) -> Any:
    """JSON of untrusted origin. Raises Unsupported."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as e:
        raise Unsupported(f"malformed JSON: {type(e).__name__}") from None


def _encode(value: Any, depth: int, room: list[float]) -> Any:
    kind = type(value)
    room[0] -= len(value) + 2 if kind in (str, bytes) else 8
    if room[0] < 0 or depth > MAX_DEPTH:
        raise Unsupported("value too large" if room[0] < 0 else "value nested too deeply")
    if value is None or kind in (bool, float):
        return value
    if kind is int:
        if value.bit_length() > MAX_INT_BITS:
            raise Unsupported("integer too large")
        return value if value.bit_length() < 64 else {"int": hex(value)}
    if kind is str:
        return value
    if kind is list:
        return [_encode(v, depth + 1, room) for v in value]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [_encode(v, depth + 1, room) for v in value]}
    if kind is dict or (kind.__module__, kind.__name__) in _DICTS:
        return {"dict": [[_encode(k, depth + 1, room), _encode(v, depth + 1, room)] for k, v in dict.items(value)]}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind is type and value in _TYPES.values():
        return {"type": value.__name__}
    raise Unsupported(f"type {kind.__name__}")


_TYPES = {t.__name__: t for t in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}
_DICTS = {("collections", "Counter"), ("collections", "OrderedDict"), ("collections", "defaultdict")}


def _decode(tree: Any, depth: int) -> Any:
    if depth > 2 * MAX_DEPTH:
        raise Unsupported("value nested too deeply")
    if type(tree) is list:
        return [_decode(v, depth + 1) for v in tree]
    if type(tree) is not dict:
        return tree
    if len(tree) != 1:
        raise Unsupported("malformed value")
    (tag, body), = tree.items()
    if tag in ("tuple", "set", "frozenset"):
        items = [_decode(v, depth + 1) for v in body]
        return tuple(items) if tag == "tuple" else (set if tag == "set" else frozenset)(_hashable(items))
    if tag == "dict":
        keys = _hashable([_decode(k, depth + 1) for k, _ in body])
        return dict(zip(keys, [_decode(v, depth + 1) for _, v in body], strict=True))
    if tag == "int":
        return int(body, 16)
    if tag == "type":
        return _TYPES[body]
    if tag == "bytes":
        return bytes.fromhex(body)
    if tag == "complex":
        return complex(*body)
    raise Unsupported("malformed value")


def _hashable(items: list[Any]) -> list[Any]:
    """Refuses keys chosen to collide: a hash table of them takes quadratic time to build."""
    hashes = sorted(map(hash, items))
    if any(a == b for a, b in zip(hashes, hashes[32:], strict=False)):
        raise Unsupported("colliding keys")
    return items
