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


@pytest.mark.parametrize("knows_groups", [True, False], ids=["torch 2.13", "torch 2.11"])
def test_grouped_queries_with_torch_s_own_kernel(knows_groups: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def varlen(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, window: Any) -> torch.Tensor:
        assert window == (-1, 0) and cu_q is cu_k and max_q == max_k == 3
        return attention.per_sequence(q, k, v, cu_q, max_q)

    def newer(*args: Any, window_size: Any, enable_gqa: bool = False) -> torch.Tensor:
        assert enable_gqa == (args[0].shape[1] != args[1].shape[1])
        return varlen(*args, window_size)

    def older(*args: Any, window_size: Any) -> torch.Tensor:
        assert args[0].shape == args[1].shape == args[2].shape
        return varlen(*args, window_size)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", newer if knows_groups else older)
    generator = torch.Generator().manual_seed(0)
    cu_seqlens = torch.tensor([0, 3, 5], dtype=torch.int32)
    query = torch.randn(5, 6, 8, generator=generator)
    for heads in (6, 2):
        key, value = torch.randn(2, 5, heads, 8, generator=generator)
        expected = attention.per_sequence(query, key, value, cu_seqlens, 3)
        torch.testing.assert_close(attention._torch_varlen(query, key, value, cu_seqlens, 3), expected)
