"""benchmarks.bench_step takes real steps and accounts for their time; its FLOPs are torch's count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from launches import Launch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks import bench_step, compare
from srpo import config as configuration
from srpo.batch import Sample

SMALL = ["batch.prompts=4", "batch.samples=4", "batch.micro_batch=4", "rollout.kv_cache_gib=0.03"]


@pytest.mark.slow
def test_steps_of_two_ranks(tmp_path: Path) -> None:
    out = tmp_path / "new.json"
    launch = Launch("-m", "benchmarks.bench_step", *SMALL, "--steps", "2", "--out", out, ranks=2, folder=tmp_path)
    assert "response tokens a second and rank" in launch.succeed()
    document = json.loads(out.read_text())
    assert len(document["steps"]) == 2 and document["ranks"] == 2
    for step in document["steps"]:
        seconds = step["seconds"]
        parts = {name: seconds[name] for name in bench_step.PARTS}
        assert all(value > 0 for value in parts.values())
        assert sum(parts.values()) < seconds["update"] + 1e-3
        assert sum(seconds[phase] for phase in bench_step.PHASES) < seconds["step"] + 1e-3
        assert 16 <= step["tokens"] <= 16 * 32 and step["update"] == 3 * step["generation"]
    assert all(0 < mfu < 1 for mfu in document["mfu"].values())
    assert compare.main([str(out), str(out)]) == 0
    for row in document["rows"]:
        row["ratios"]["to_floor"] *= 1.1
    compare.write(document, tmp_path / "slower.json")
    assert compare.main([str(out), str(tmp_path / "slower.json")]) == 1


def test_a_bad_setting_is_one_line(tmp_path: Path) -> None:
    launch = Launch("-m", "benchmarks.bench_step", "batch.prompts=3", ranks=2, folder=tmp_path)
    assert launch.end() != 0
    assert "benchmarks.bench_step: batch.prompts = 3: must divide over 2 data-parallel replicas" in launch.output


@pytest.mark.parametrize("kl, passes", [(None, 3), ("k3", 4)])
def test_flops_are_those_that_torch_counts(kl: str | None, passes: int, tmp_path: Path) -> None:
    hf = Qwen2Config(vocab_size=197, hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
                     num_key_value_heads=2)  # fmt: skip
    hf.save_pretrained(tmp_path)
    config = configuration.load(bench_step.QUICKSTART, [f"model.path={tmp_path}", f"algorithm.kl={kl or 'null'}"])
    lengths = [(5, 20), (9, 40)]
    samples = [Sample(np.zeros(p, np.int32), np.zeros(r, np.int32)) for p, r in lengths]
    model = AutoModelForCausalLM.from_config(hf, attn_implementation="eager")
    counted = 0.0
    for prompt, response in lengths:
        tokens = prompt + response
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, tokens, dtype=torch.long), logits_to_keep=response)
        counted += counter.get_total_flops() - 2 * 3 * 32 * tokens**2  # it counts what the causal mask hides too
        counted -= 2 * 8 * tokens // 2  # and the angles of the rotary embedding
    found = bench_step.flops(config, samples)
    assert found["generation"] == pytest.approx(counted, rel=1e-4)
    assert found["update"] == passes * found["generation"]
