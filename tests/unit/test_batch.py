"""Packing: what the model reads, what it learns from, and that every split covers the same samples."""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from srpo.batch import MicroBatch, Sample, attention_cost, normalizer, pack, split


def samples(count: int, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = [rng.randrange(50) for _ in range(rng.randint(1, 5))]
        tokens = [rng.randrange(50) for _ in range(rng.randint(1, 9))]
        made.append(sample(prompt, tokens, [-rng.random() for _ in tokens]))
    return made


def sample(prompt: list[int], tokens: list[int], logprobs: list[float] | None = None) -> Sample:
    return Sample(np.array(prompt, np.int32), np.array(tokens, np.int32),
                  None if logprobs is None else np.array(logprobs, np.float32))


def test_rows_predict_the_response():
    """The hidden state at rows[n] has read exactly the prompt and the response before targets[n]."""
    made = samples(7)
    (batch,) = pack(made, [float(i) for i in range(7)], range(7), sequences=7, rank=0, ranks=1)
    for place, i in enumerate(batch.sample_index.tolist()):
        one, start = made[i], int(batch.cu_seqlens[place])
        whole = [*one.prompt_tokens, *one.tokens]
        first, last = batch.cu_rows[place], batch.cu_rows[place + 1]
        assert batch.targets[first:last].tolist() == one.tokens.tolist()
        ends = range(len(one.prompt_tokens), len(whole))
        for row, target in zip(batch.rows[first:last].tolist(), ends, strict=True):
            assert batch.tokens[start : row + 1].tolist() == whole[:target]
        assert batch.advantages[first:last].tolist() == [float(i)] * len(one.tokens)
        assert batch.rollout_logprobs is not None
        assert torch.equal(batch.rollout_logprobs[first:last], torch.tensor(one.rollout_logprobs))
        assert batch.position_ids[start : int(batch.cu_seqlens[place + 1])].tolist() == list(range(len(whole) - 1))
    assert bool(batch.mask.all())


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("sequences", [1, 3, 100])
def test_every_sample_once_and_equal_counts(ranks: int, sequences: int):
    made = samples(13)
    indices = list(range(2, 13))
    shares = [pack(made, [0.0] * 13, indices, sequences=sequences, rank=r, ranks=ranks) for r in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    seen = [i for share in shares for batch in share for i in batch.sample_index.tolist() if i >= 0]
    assert sorted(seen) == indices
    assert all(len(batch.sample_index) <= sequences for share in shares for batch in share)
    assert sum(int(batch.mask.sum()) for share in shares for batch in share) == normalizer(made, indices, "token", 1)


def test_a_rank_without_samples_gets_a_masked_dummy():
    made = samples(1)
    (batch,) = pack(made, [1.0], [0], sequences=4, rank=1, ranks=2, multiple=4)
    assert not bool(batch.mask.any()) and batch.sample_index.tolist() == [-1]
    assert len(batch.tokens) == 4 and batch.cu_seqlens.tolist() == [0, 4]
    assert len(batch.rows) == len(batch.targets) == len(batch.mask) == 1 and batch.cu_rows.tolist() == [0, 1]


@pytest.mark.parametrize("multiple", [2, 8])
def test_alignment_is_a_sequence_of_its_own(multiple: int):
    made = samples(3)
    (batch,) = pack(made, [1.0] * 3, range(3), sequences=3, rank=0, ranks=1, multiple=multiple)
    (plain,) = pack(made, [1.0] * 3, range(3), sequences=3, rank=0, ranks=1)
    assert len(batch.tokens) % multiple == 0 and len(batch.tokens) - len(plain.tokens) < multiple
    assert batch.cu_seqlens[: len(plain.cu_seqlens)].tolist() == plain.cu_seqlens.tolist()
    assert torch.equal(batch.rows, plain.rows) and torch.equal(batch.mask, plain.mask)


def long_tail(count: int) -> list[Sample]:
    rng = random.Random(3)
    return [sample([1] * 5, [1] * min(300, max(1, int(rng.lognormvariate(4, 1))))) for _ in range(count)]


@pytest.mark.parametrize("tokens", [None, 400])
def test_ranks_and_micro_batches_are_balanced(tokens: int | None):
    """Ranks all but equal, and a rank's micro-batches nearly: a long-tailed step over 4 ranks."""
    made = long_tail(256)
    shares = [pack(made, [0.0] * 256, range(256), sequences=8, tokens=tokens, rank=r, ranks=4) for r in range(4)]
    sizes = [[len(b.tokens) for b in share] for share in shares]
    assert max(map(sum, sizes)) <= 1.001 * min(map(sum, sizes))
    assert max(map(max, sizes)) <= 1.1 * min(map(min, sizes))


@pytest.mark.parametrize("ranks", [1, 3])
def test_micro_batches_of_a_token_budget(ranks: int):
    """None exceeds it, padding aside; every response once; equal counts, and no more than 11/9 of the fewest."""
    made = long_tail(100)
    indices = range(4, 100)
    shares = [pack(made, [1.0] * 100, indices, sequences=1, tokens=310, rank=r, ranks=ranks, multiple=4)
              for r in range(ranks)]
    assert sorted(i for share in shares for b in share for i in b.sample_index.tolist() if i >= 0) == list(indices)
    assert all(int(b.cu_seqlens[-2 if len(b.tokens) % 4 else -1]) <= 312 for share in shares for b in share)
    total = sum(len(made[i].prompt_tokens) + len(made[i].tokens) - 1 for i in indices)
    assert {len(share) for share in shares} == {len(shares[0])}
    assert len(shares[0]) <= 11 / 9 * -(-total // (310 * ranks)) + 1


def test_a_rank_without_samples_gets_a_dummy_under_a_budget_too():
    made = samples(1)
    for indices in ([0], []):
        (batch,) = pack(made, [1.0], indices, sequences=4, tokens=50, rank=1, ranks=2)
        assert not bool(batch.mask.any())


def test_attention_makes_long_sequences_cost_more():
    """One sequence of 200 tokens and twenty of 20: in tokens it goes with five of them. With attention as dear as the
    rest at 100 tokens it costs 600, and all the others together 480."""
    made = [sample([1], [1] * 200), *(sample([1], [1] * 20) for _ in range(20))]

    def tokens_of_the_long_one(attention: float) -> int:
        shares = [pack(made, [0.0] * 21, range(21), sequences=1, tokens=600, attention=attention, rank=r, ranks=2)
                  for r in range(2)]
        ((long,),) = [share for share in shares if any(0 in b.sample_index.tolist() for b in share)]
        return len(long.tokens)

    assert tokens_of_the_long_one(0.0) == 300 and tokens_of_the_long_one(0.01) == 200


def test_attention_cost_of_qwen():
    """Qwen2.5-7B: 233 million weights a layer, heads 3584 wide: attention costs as much as the matrices at 65,000."""
    hf = SimpleNamespace(hidden_size=3584, num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944)
    assert 1 / attention_cost(hf) == pytest.approx(233_046_016 / 3584)


def test_tokens_of_earlier_steps_are_marked():
    made = [sample([1], [1, 2, 3]), replace(sample([1], [4, 5]), stale=1), replace(sample([1], [6, 7]), stale=2)]
    (batch,) = pack(made, [1.0] * 3, range(3), sequences=3, rank=0, ranks=1)
    marked = dict(zip(batch.targets.tolist(), batch.fresh.tolist(), strict=True))
    assert marked == {1: True, 2: True, 3: True, 4: False, 5: True, 6: False, 7: False}
    (batch,) = pack(made, [1.0] * 3, [0], sequences=3, rank=0, ranks=1)
    assert batch.fresh is None


def test_a_response_goes_through_a_checkpoint_unchanged():
    (made,) = samples(1)
    made = replace(made, stale=2, finished=False, truncated=True)
    back = Sample.from_state(made.prompt_tokens.tolist(), json.loads(json.dumps(made.state())))
    for f in fields(Sample):
        old, new = getattr(made, f.name), getattr(back, f.name)
        assert np.array_equal(old, new) and (not isinstance(old, np.ndarray) or old.dtype == new.dtype), f.name


def test_normalizer_counts():
    made = [sample([1], [1, 2]), sample([1], [1, 2, 3])]
    assert normalizer(made, [0, 1], "token", 10) == 5
    assert normalizer(made, [0, 1], "sequence", 10) == 2
    assert normalizer(made, [0, 1], "constant", 10) == 20


@pytest.mark.parametrize(("count", "parts"), [(8, 1), (8, 3), (2, 4), (512, 8)])
def test_split_covers_in_order(count: int, parts: int):
    pieces = split(count, parts)
    assert [i for piece in pieces for i in piece] == list(range(count))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_moves_every_tensor():
    made = samples(2)
    (batch,) = pack(made, [1.0] * 2, range(2), sequences=2, rank=0, ranks=1)
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, MicroBatch) and moved.old_logprobs is None
    assert all(v.device.type == "meta" for v in vars(moved).values() if v is not None)
