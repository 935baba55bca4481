"""Which of vLLM's runners an engine asks for; the device is a stand-in."""

import os

import pytest
import torch
import torch._dynamo

from srpo.rollout.runner import choose_runner

NAME = "VLLM_USE_V2_MODEL_RUNNER"


@pytest.mark.parametrize(("cuda", "pipeline", "before", "expected"), [
    (True, 1, None, "1"), (True, 1, "0", "0"), (True, 2, None, None), (False, 1, None, None)])
def test_the_second_runner_is_asked_for_where_it_can_run(monkeypatch, cuda, pipeline, before, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(os, "environ", {} if before is None else {NAME: before})
    with torch._dynamo.config.patch(disable=False):
        assert choose_runner(pipeline) is cuda
        assert torch._dynamo.config.disable is not cuda
    assert os.environ.get(NAME) == expected
    assert os.environ.get("VLLM_USE_FLASHINFER_SAMPLER") == ("0" if cuda else None)
