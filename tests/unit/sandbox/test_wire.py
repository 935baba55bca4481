"""What crosses between the trusted and the untrusted side, and what does not."""

import pytest

from srpo.sandbox.wire import MAX_DEPTH, Unsupported, decode, encode, loads


def test_the_wire_refuses_what_is_no_plain_value():
    for bad in ({"tuple": 1}, {"set": [[1]]}, {"a": 1, "b": 2}, {"unknown": 1}, {"int": "zz"}, {"dict": [[1]]},
                {"bytes": "q"}, {"type": "object"}, {"type": []}, {"dict": [[[1], 2]]}, {"complex": ["a"]},
                {"set": [k * (2**61 - 1) for k in range(40)]}):
        with pytest.raises(Unsupported):
            decode(bad)
    with pytest.raises(Unsupported):
        loads(b"[" * 100_000)
    with pytest.raises(Unsupported):
        encode(object())
    deep: list = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(Unsupported):
        encode(deep)


def test_a_class_crosses_only_if_it_is_a_builtin_type():
    assert decode(encode([int, (str,)])) == [int, (str,)]
    for other in (object, type, type("int", (), {}), type("E", (type,), {"__eq__": lambda s, o: True})("int", (), {})):
        with pytest.raises(Unsupported):
            encode(other)
