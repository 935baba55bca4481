"""The Megatron loop of docs/kernels.md on two tensor-parallel ranks, in a GPTModel as Megatron-Core has it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from harness import ROOT, Case
from megatron.core import parallel_state as mpu
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from models import regroup, relative

from srpo.megatron.model import RMSNorm

VOCAB, PADDED, LENGTH = 53, 64, 12
CASES = [Case(2, f"{kind}-{tied}") for kind in ("whole", "sequence") for tied in ("untied", "tied")]


def guide(name: str) -> Any:
    """A function that a Python block of the guide defines."""
    text = (ROOT / "docs" / "kernels.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec("from srpo_kernels import *\nimport torch\n" + next(b for b in blocks if f"def {name}(" in b), names)
    return names[name]


def build(sequence: bool, tied: bool) -> GPTModel:
    model_parallel_cuda_manual_seed(0)
    config = TransformerConfig(
        num_layers=2, hidden_size=16, num_attention_heads=4, tensor_model_parallel_size=2, sequence_parallel=sequence,
        hidden_dropout=0.0, attention_dropout=0.0, use_cpu_initialization=True, add_bias_linear=False,
        normalization="RMSNorm", gradient_accumulation_fusion=False, calculate_per_token_loss=True)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    # Megatron's own, without apex, refuses sequence parallelism.
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    spec = TransformerBlockSubmodules([layer] * config.num_layers, layer_norm=RMSNorm)
    torch.manual_seed(0)
    return GPTModel(config, spec, PADDED, LENGTH, share_embeddings_and_output_weights=tied)


def gradients(model: GPTModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def measure(name: str) -> dict[str, float]:
    kind, tied = name.split("-")
    regroup(tensor=2)
    model = build(kind == "sequence", tied == "tied")
    torch.manual_seed(1)
    ids = torch.randint(0, VOCAB, (1, LENGTH))
    rows = torch.arange(4, LENGTH - 1)  # a prompt of five tokens
    targets, advantages = ids[0, rows + 1], torch.linspace(-1, 1, len(rows))
    inputs = (ids, torch.arange(LENGTH)[None], torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1))

    # Megatron's own output layer, then the formula in plain torch over the whole vocabulary.
    logits = gather_from_tensor_model_parallel_region(model(*inputs), group=mpu.get_tensor_model_parallel_group())
    logprobs = logits[0, rows, :VOCAB].log_softmax(-1).gather(1, targets[:, None])[:, 0]
    old = logprobs.detach() - 0.4 * advantages  # the last rows' ratios are above 1.28, the first below 0.8
    ratio = (logprobs - old).exp()
    expected = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages).sum() / 100
    expected.backward()
    want = gradients(model)

    batch = {"rows": rows, "targets": targets, "advantages": advantages, "old_logprobs": old, "vocab_size": VOCAB}
    model.output_layer.forward = lambda hidden, **_: (hidden, None)
    weight = model.shared_embedding_or_output_weight() if tied == "tied" else model.output_layer.weight
    found = {"loss": 0.0, "gradient": 0.0}
    for direct in (False, True):
        model.zero_grad()
        weight.main_grad = torch.zeros_like(weight, dtype=torch.float32)
        hidden = model(*inputs).transpose(0, 1)
        loss, _, metrics = guide("megatron_loss")(hidden, weight, batch, 100, kind == "sequence", direct)
        loss.backward()
        assert metrics.clipped == 4
        if direct:
            weight.grad = weight.main_grad if weight.grad is None else weight.grad + weight.main_grad
        got = gradients(model)
        assert got.keys() == want.keys()
        found["loss"] = max(found["loss"], abs(loss - expected).item())
        found["gradient"] = max(found["gradient"], *(relative(got[key], want[key]) for key in want))
    return found


@pytest.mark.parametrize("measured", CASES, ids=str, indirect=True)
def test_guide_in_a_gpt_model(measured: dict[str, float]) -> None:
    assert measured["loss"] < 1e-6 and measured["gradient"] < 1e-5
