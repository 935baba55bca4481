"""How flash-attn is called on a GPU; the packages and the device are stand-ins."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from srpo.megatron import attention


@pytest.mark.parametrize(
    ("module", "major", "expected"),
    [
        ("flash_attn", 8, True),
        ("flash_attn_interface", 9, True),
        ("flash_attn.cute", 9, False),
        ("flash_attn.cute", 10, True),
    ],
)
def test_the_backward_pass_is_deterministic_where_it_can_be(
    module: str, major: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flash_attn_varlen_func(q: Any, k: Any, v: Any, *, deterministic: bool = False, **_: Any) -> bool:
        return deterministic

    stand_in = types.ModuleType(module)
    stand_in.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    for name, *_ in attention.FLASH:
        monkeypatch.setitem(sys.modules, name, stand_in if name == module else types.ModuleType(name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
    function, _reason = attention._choose("cuda", torch.bfloat16)
    some = torch.empty(0)
    assert function(some, some, some, some, 1) is expected  # type: ignore[comparison-overlap]
