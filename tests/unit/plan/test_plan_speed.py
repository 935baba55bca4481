"""Seconds of a step, each term by hand: all rates but one are infinite. Qwen2.5-7B, written out."""

import math
from dataclasses import replace

import pytest
from jobs import job

from srpo.plan.hardware import Gpu, gpu
from srpo.plan.simulate import Group
from srpo.plan.speed import decoder, times
from srpo.plan.workload import Step, Workload

LAYERS, HIDDEN, FFN, QUERY, KV, VOCAB = 28, 3584, 18944, 3584, 512, 152064
COLUMN = LAYERS * HIDDEN * (QUERY + 2 * KV + 2 * FFN)  # weights of query, key, value, gate and up
MATRICES = COLUMN + LAYERS * HIDDEN * (QUERY + FFN)
WEIGHTS = 7_615_616_512
LEARNS, WATCHES = (Group(200, (800,) * 8, 800.0, learns=learns) for learns in (True, False))
READ, ROWS = 64 * 1000, 64 * 800  # eight groups


def only(**rates: float) -> Gpu:
    """A GPU that takes no time but for these."""
    free = dict.fromkeys(("bandwidth", "matmul", "attention_forward", "attention_backward", "link", "network", "host"),
                         math.inf)
    free |= {"layer_matmul": 1.0, "decode_bandwidth": 1.0, "all_reduce": 0.0, "decode_step": 0.0}
    base = gpu("h100")
    return replace(base, **{name: replace(getattr(base, name), value=value) for name, value in (free | rates).items()})


def work(*groups: Group) -> Workload:
    some = list(groups) * (8 // len(groups))
    return Workload(some, [Step([some], some)], {})


def step(device: Gpu, gpus: int = 1, *groups: Group, parallel=None, **sections):
    return times(job(gpus, parallel=parallel or {}, **sections), device, work(*(groups or [LEARNS])))


def test_products_are_six_operations_a_weight_and_token_and_two_without_an_advantage():
    device = only(matmul=100.0)
    forward = 2 * (MATRICES * READ + VOCAB * HIDDEN * ROWS) / 1e14
    assert step(device).update == pytest.approx(3 * forward)
    assert step(device, 1, WATCHES).update == pytest.approx(forward)
    assert step(device, 1, LEARNS, WATCHES).update == pytest.approx(2 * forward)
    assert step(device, 1, WATCHES, algorithm=dict(entropy_coef=0.01)).update == pytest.approx(3 * forward)
    assert step(device, 8, parallel=dict(tensor=2)).update == pytest.approx(3 * forward / 8)


def test_model_flops_follow_what_is_learned():
    attention = 2 * 64 * 1000**2 * QUERY * LAYERS
    forward = 2 * (MATRICES * READ + VOCAB * HIDDEN * ROWS) + attention
    learned, watched = (step(only(matmul=989.0), 1, some) for some in (LEARNS, WATCHES))
    assert learned.update_flops == pytest.approx(3 * forward) and watched.update_flops == pytest.approx(forward)
    assert learned.mfu == pytest.approx(watched.mfu) == pytest.approx(forward / (forward - attention))


def test_recomputation_adds_a_forward_pass_of_the_layers_or_of_the_feed_forward_part():
    none, selective, full = (step(only(matmul=100.0), parallel=dict(recompute=r)).update
                             for r in ("none", "selective", "full"))
    assert full - none == pytest.approx(2 * MATRICES * READ / 1e14)
    assert selective - none == pytest.approx(2 * LAYERS * 3 * HIDDEN * FFN * READ / 1e14)


def test_attention_is_causal_and_two_and_a_half_times_as_much_backward():
    forward = 2 * 64 * 1000**2 * QUERY * LAYERS
    assert step(only(attention_forward=100.0), 2).update == pytest.approx(forward / 1e14 / 2)
    assert step(only(attention_backward=100.0), 2).update == pytest.approx(2.5 * forward / 1e14 / 2)


def test_messages_of_tensor_parallelism():
    """Sequence parallelism: 4 gathers and reductions a layer forward and 6 backward; without it 2 all-reduces each way,
    each as long as two of those. Those of the column-parallel layers' backward pass hide behind its products."""
    once = 0.5 * READ / 4 * HIDDEN * 2 * LAYERS / 1e9  # 8 GPUs: 4 replicas
    split, whole = dict(tensor=2, sequence=True), dict(tensor=2)
    assert step(only(link=1.0), 8, parallel=split).update == pytest.approx(10 * once)
    assert step(only(link=1.0), 8, parallel=whole).update == pytest.approx(8 * once)
    products = step(only(matmul=1.0), 8).update  # much longer than the messages
    for parallel, shown in ((split, 6), (whole, 4)):
        both = step(only(link=1.0, matmul=1.0), 8, parallel=parallel).update
        assert both == pytest.approx(products + shown * once)
    column = 2 * COLUMN * READ / 8 / 2e13  # just not long enough
    slow = step(only(link=1.0, matmul=20.0), 8, parallel=whole).update
    assert 0 < column < 4 * once
    assert slow == pytest.approx(products / 20 + 8 * once - column)


def test_a_pipeline_fills_and_drains():
    """64,000 tokens are 7 micro-batches of 9,216: three more of the layers' time for the other stages."""
    stage = 3 * 2 * MATRICES * READ / 4 / 1e14
    head = 3 * 2 * VOCAB * HIDDEN * ROWS / 1e14
    assert step(only(matmul=100.0), 4, parallel=dict(pipeline=4)).update == pytest.approx(stage * (1 + 3 / 7) + head)
    between = 2 * READ * HIDDEN * 2 / 1e9
    assert step(only(link=1.0), 4, parallel=dict(pipeline=4)).update == pytest.approx(between * (1 + 3 / 7))


def test_gradients_are_reduced_in_float32_and_parameters_gathered_in_bfloat16():
    assert step(only(link=1.0), 8).reduction == pytest.approx(6 * WEIGHTS * 7 / 8 / 1e9, rel=1e-6)
    assert step(only(link=1.0), 8, dtype="float32").reduction == pytest.approx(8 * WEIGHTS * 7 / 8 / 1e9, rel=1e-6)
    # 8 replicas of two GPUs on two nodes: a replica's part of a node is one of two groups, with four of the adapters
    across = step(only(network=1.0), 16, parallel=dict(tensor=2)).reduction
    assert across == pytest.approx(6 * WEIGHTS / 2 * 7 / 8 / 4e9, rel=1e-3)


def test_the_reference_policy_changes_places_there_and_back():
    kl = dict(kl="k3", kl_coef=0.01)
    assert step(only(host=1.0), algorithm=kl).scoring == pytest.approx(8 * WEIGHTS / 1e9, rel=1e-6)
    assert step(only(matmul=100.0), 1, LEARNS, WATCHES, algorithm=kl).scoring == pytest.approx(
        2 * (MATRICES * READ + VOCAB * HIDDEN * ROWS) / 1e14)


def test_a_decode_step_reads_the_weights_and_the_cache():
    made = decoder(job(8, parallel=dict(tensor=4)), only(bandwidth=1.0))
    assert made.weights == pytest.approx(2 * (MATRICES + VOCAB * HIDDEN) / 4 / 1e12)
    assert made.cached == pytest.approx(2 * 28 * 128 * 2 / 1e12)  # one of four key-value heads
    assert made.capacity == pytest.approx(8 * 2**30 / (2 * 28 * 128 * 2))
    wide = decoder(job(8, parallel=dict(tensor=2), rollout=dict(tensor=4)), only(link=1.0))
    assert wide.sequence == pytest.approx(2 * 28 * 2 * 0.75 * HIDDEN * 2 / 1e9)  # two all-reduces a layer
