"""What a step's loss holds at most, counted on the meta device, where tensors have sizes and no contents."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from srpo_kernels import PolicyLossConfig, linear, linear_policy_loss
from torch import Tensor
from torch.utils._pytree import tree_leaves

ROWS, WIDTH, HIDDEN = 32_768, 152_064, 5_120  # Qwen2.5-32B, a step's worth of tokens
GIB = 2**30


class Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """The most bytes that were held at once of what was made inside."""

    def __init__(self, *inputs: Tensor | None) -> None:
        super().__init__()
        self.live = {tensor.untyped_storage()._cdata: 0 for tensor in inputs if tensor is not None}
        self.now = self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.live:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.bytes = max(self.bytes, self.now)
                weakref.finalize(storage, self._free, storage._cdata)
        return result

    def _free(self, key: int) -> None:
        self.now -= self.live.pop(key)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def peak(*, rows: int = ROWS, direct: bool = True, **options: Any) -> int:
    hidden, weight = meta(rows, HIDDEN).requires_grad_(), meta(WIDTH, HIDDEN).requires_grad_()
    tokens = meta(rows, dtype=torch.int64)
    per_row = meta(rows, dtype=torch.float32)
    buffer = meta(WIDTH, HIDDEN, dtype=torch.float32) if direct else None
    with Peak(hidden, weight, tokens, per_row, buffer) as tracked:
        loss, _ = linear_policy_loss(hidden, weight, tokens, per_row, old_logprobs=per_row, ref_logprobs=per_row,
                                     weight_grad=buffer, config=PolicyLossConfig(kl="k3", kl_coef=0.1), **options)
        loss.backward()
    return tracked.bytes


def test_a_step_of_a_large_model() -> None:
    logits_and_gradient = 2 * ROWS * WIDTH * 2
    assert logits_and_gradient > 18 * GIB
    assert peak() < 1.6 * GIB  # below 3 GiB: a chunk of logits, and the gradient of the hidden states


def test_it_does_not_grow_with_the_rows_but_by_their_gradient() -> None:
    assert peak(rows=2 * ROWS) - peak() < 1.1 * ROWS * HIDDEN * 2


def test_a_gradient_for_autograd_costs_its_own_size() -> None:
    """In float32 while it is summed, and once more in the weight's dtype as it is handed over."""
    assert peak(direct=False) - peak() < WIDTH * HIDDEN * (4 + 2)


def test_log_probs_alone() -> None:
    hidden, weight, tokens = meta(ROWS, HIDDEN), meta(WIDTH, HIDDEN), meta(ROWS, dtype=torch.int64)
    with Peak(hidden, weight, tokens) as tracked:
        # What linear_token_logprobs does inside an operator, which hides it from the tracker.
        linear._chunked_statistics(hidden, weight, tokens, 1.0, WIDTH, "cpp")
    assert tracked.bytes < 1.1 * GIB


def test_the_tracker_counts() -> None:
    x = meta(GIB // 2)
    with Peak(x) as tracked:
        y = x + 1
        z = y + 1
        del y
        z = z.view(-1) + 1
    assert tracked.bytes == 2 * GIB and z.numel() == GIB // 2


@pytest.mark.parametrize("rows", [1, 4096])
def test_values_are_not_needed(rows: int) -> None:
    """Nothing looks at a value on the host, or this would fail on the meta device."""
    assert peak(rows=rows, mask=meta(rows, dtype=torch.bool), normalizer=meta(dtype=torch.float32)) > 0
