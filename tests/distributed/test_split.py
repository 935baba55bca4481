"""The gradient of one batch is the same however it is split: micro-batches, packing, padding, data-parallel ranks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
import torch
from models import build, gradients, make_model, make_samples, regroup, relative, save_once
from transformers import PreTrainedModel

from srpo.batch import Sample, normalizer, pack

SAMPLES = 10  # on four ranks one a micro-batch leaves two micro-batches empty
LONGEST = 20
SPLITS = [  # (aggregate, sequences a micro-batch, T is padded to a multiple of)
    *(("token", sequences, multiple) for sequences in (1, 2, 4, 10) for multiple in (1, 16)),
    *((aggregate, sequences, 1) for aggregate in ("sequence", "constant") for sequences in (1, 3, 10)),
]
RANKS = (1, 2, 4)


def cases(_ranks: int) -> Iterator[str]:
    return (f"{aggregate}-{sequences}-{multiple}" for aggregate, sequences, multiple in SPLITS)


def expected_loss(
    model: PreTrainedModel, samples: list[Sample], advantages: list[float], aggregate: str
) -> torch.Tensor:
    losses = []
    for sample, advantage in zip(samples, advantages, strict=True):
        ids = torch.tensor([sample.prompt_tokens + sample.tokens])
        logprobs = model(ids).logits[0, len(sample.prompt_tokens) - 1 : -1].log_softmax(-1)
        losses.append(-advantage * logprobs.gather(1, torch.tensor(sample.tokens)[:, None])[:, 0])
    if aggregate == "token":
        return torch.cat(losses).mean()
    if aggregate == "sequence":
        return torch.stack([loss.mean() for loss in losses]).mean()
    return torch.stack([loss.sum() / LONGEST for loss in losses]).mean()


def measure(name: str) -> dict[str, float]:
    aggregate, sequences, multiple = name.split("-")
    regroup()
    path = Path("model")
    save_once(make_model("qwen2-tied"), path)
    trainer = build(path, algorithm=dict(aggregate=aggregate))
    trainer.load_hf(path)
    samples, advantages = make_samples(SAMPLES)
    batches = pack(
        samples, advantages, range(SAMPLES), sequences=int(sequences), rank=torch.distributed.get_rank(),
        ranks=torch.distributed.get_world_size(), multiple=int(multiple),
    )  # fmt: skip
    found = gradients(trainer, batches, normalizer(samples, range(SAMPLES), aggregate, LONGEST))
    reference = make_model("qwen2-tied").double()  # exact, next to float32
    expected_loss(reference, samples, advantages, aggregate).backward()
    return {"gradients": max(relative(found[n].double(), p.grad) for n, p in reference.named_parameters())}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("split")
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize(("ranks", "name"), [(ranks, name) for ranks in RANKS for name in cases(ranks)])
def test_gradient_does_not_depend_on_the_split(ranks: int, name: str, directory: Path) -> None:
    assert harness.results(__file__, ranks, directory)(name)["gradients"] < 1e-5


if __name__ == "__main__":
    harness.main(measure, cases)
