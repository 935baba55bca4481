"""What the plan says a GPU holds, by hand; tests/distributed/test_plan_memory.py compares it with measurements."""

import pytest
from jobs import job

from srpo.plan import memory

GIB = 2**30


def phases(job):
    return {phase.name: phase for phase in memory.phases(job)}


def test_state_is_18_bytes_a_weight_and_divided_as_the_distributed_optimizer_divides_it():
    one, eight = (memory.state(job(gpus), 0) for gpus in (1, 8))
    weights = 7_615_616_512
    assert sum(one.values()) == pytest.approx(18 * weights, rel=1e-6)
    assert eight["parameters"] == one["parameters"] and eight["gradients"] == one["gradients"]
    assert eight["optimizer state"] == one["optimizer state"] // 8
    assert memory.optimizer_state(job(1), 100) == 1200
    assert memory.optimizer_state(job(1, dtype="float32"), 100) == 800


def test_a_token_of_kv_cache():
    assert job().kv_bytes_per_token == 2 * 28 * 4 * 128 * 2
    assert job(parallel=dict(tensor=4)).kv_bytes_per_token == 2 * 28 * 128 * 2
    wide = job(8, model="Qwen2.5-32B", rollout=dict(tensor=16))  # heads are repeated, not divided further
    assert wide.kv_bytes_per_token == job(8, model="Qwen2.5-32B", rollout=dict(tensor=8)).kv_bytes_per_token


def test_offload_leaves_gradients_to_the_update_and_a_piece_of_the_state_to_its_last_moment():
    kept, away = (phases(job(8, parallel=dict(tensor=2, offload=offload))) for offload in (False, True))
    state = memory.state(job(8, parallel=dict(tensor=2)), 0)
    freed = state["gradients"] + state["optimizer state"]
    assert kept["generation"].total - away["generation"].total == freed
    assert kept["update"].total - away["update"].total == state["optimizer state"]
    assert kept.keys() ^ away.keys() == {"checkpoint"}
    assert away["checkpoint"].terms == {"parameters": 2 * state["parameters"], "gradients": state["gradients"]}
    assert memory.host(job(8, parallel=dict(tensor=2, offload=True)))["offloaded state"] == state["optimizer state"]


def test_a_save_has_all_of_the_state_and_no_gradients():
    large = job(8, model="Qwen2.5-32B", parallel=dict(tensor=8, offload=True))
    found, state = phases(large)["checkpoint"], memory.state(large, 0)
    assert found.moment == "saving" and found.total == state["parameters"] + state["optimizer state"]


def test_a_piece_of_the_state_is_a_gibibyte_or_one_parameters_or_all_there_is():
    assert memory.piece(job(8, parallel=dict(tensor=2, offload=True)), 0) == 12 * 152064 * 3584 // 2
    assert memory.piece(job(8, parallel=dict(tensor=4, pipeline=2, offload=True), model="Qwen2.5-32B"), 0) == 12 * (
        152064 * 5120 // 4)
    little = job(256, parallel=dict(offload=True))
    assert memory.piece(little, 0) == memory.state(little, 0)["optimizer state"] < GIB


def test_recomputation_and_sequence_parallelism_keep_less():
    def activations(**parallel):
        return phases(job(8, parallel=parallel))["update"].terms["activations"]

    none, selective, full = (activations(recompute=r) for r in ("none", "selective", "full"))
    # 9,216 tokens x 28 layers x 2 bytes: 4 hidden, 5 feed-forward and 12,800 of attention, with the odd statistic
    assert none == pytest.approx(9216 * 28 * 2 * (4 * 3584 + 5 * 18944 + 12288), rel=0.01)
    assert full < selective < none / 3 and full < none / 10
    assert activations(tensor=2, sequence=True) < activations(tensor=2) < none


def test_only_updates_and_kl_need_scoring():
    assert "scoring" not in phases(job())
    assert "scoring" in phases(job(batch=dict(updates=2)))
    assert "scoring" in phases(job(algorithm=dict(kl="k3")))
    assert "scoring" not in phases(job(batch=dict(updates=2), algorithm=dict(old_logprobs="rollout", tis_cap=2.0)))


def test_other_layouts_for_vllm_take_memory_and_a_sync():
    same = phases(job(8, parallel=dict(tensor=2)))
    other = phases(job(8, parallel=dict(tensor=2), rollout=dict(tensor=1)))
    assert "sync" not in same and "rollout weights" not in same["generation"].terms
    assert other["sync"].terms["rollout weights"] == pytest.approx(2 * 7_615_616_512, rel=0.01)


def test_the_loss_holds_a_chunk_of_logits():
    one, eight = (job(8, parallel=dict(tensor=n)) for n in (1, 4))
    assert memory.chunk_rows(one, "cuda") == 2**29 // 152064 // 128 * 128
    assert memory.chunk_rows(eight, "cuda") > 3 * memory.chunk_rows(one, "cuda")  # the chunk stays as large
    logits = 2 * memory.chunk_rows(one, "cuda") * 152064
    assert 0.95 * GIB < logits < GIB
    rows = 9216 * 3 * 3584 * 2  # hidden states, those of response tokens, their gradient
    assert memory.head(one, "cuda") == logits + rows + memory.chunk_rows(one, "cuda") * 3584 * 2


def test_a_token_budget_bounds_the_micro_batch():
    counted = job(8, batch=dict(micro_batch_tokens=None, micro_batch=2))
    assert counted.micro_batch_tokens == 2 * (1024 + 8192 - 1) and counted.micro_batch_rows == 2 * 8192
    assert job(8).micro_batch_tokens == job(8).micro_batch_rows == 9216
    assert counted.micro_batches(1.0, 1024.0) == 512 and job(8).micro_batches(9217.0, 1024.0) == 2
