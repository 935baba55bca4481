"""Packing: what the model reads, what it learns from, and that every split covers the same samples."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from srpo.batch import MicroBatch, Sample, normalizer, pack, split


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


def test_tokens_are_balanced():
    """Dealing by length keeps micro-batches of long and short sequences within the longest sequence of each other."""
    rng = random.Random(3)
    made = [sample([1], [1] * max(1, int(rng.lognormvariate(3, 1)))) for _ in range(64)]
    sizes = [len(b.tokens) for r in range(4) for b in pack(made, [0.0] * 64, range(64), sequences=4, rank=r, ranks=4)]
    assert max(sizes) - min(sizes) <= max(len(s.tokens) for s in made)


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
