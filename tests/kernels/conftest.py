from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from backends import COMPILED


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """The same numbers in every run, on one thread, as the rest of the suite shares the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = os.environ.get("SRPO_TEST_DEVICE")  # where tensors are made that name no device (gpu_check)
    with torch.device(device) if device else nullcontext():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", params=COMPILED)
def one_pass(request: pytest.FixtureRequest) -> str:
    """A backend that computes the policy loss and its gradient in one pass."""
    return str(request.param)
