"""The gradient of one batch is the same however it is split: micro-batches, packing, padding, data-parallel ranks."""

from __future__ import annotations

import pytest
import torch
from harness import Case
from models import build, gradients, make_model, make_samples, relative, saved_model
from transformers import PreTrainedModel

from srpo.batch import Sample, normalizer, pack

SAMPLES = 10  # on four ranks one a micro-batch leaves two micro-batches empty
LONGEST = 20
SPLITS = [  # (aggregate, sequences a micro-batch, T is padded to a multiple of)
    *(("token", sequences, multiple) for sequences in (1, 2, 4, 10) for multiple in (1, 16)),
    *((aggregate, sequences, 1) for aggregate in ("sequence", "constant") for sequences in (1, 3, 10)),
]
CASES = [Case(ranks, "-".join(map(str, split))) for ranks in (1, 2, 4) for split in SPLITS]


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
    path = saved_model("qwen2-tied")
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


@pytest.mark.parametrize("measured", CASES, ids=str, indirect=True)
def test_gradient_does_not_depend_on_the_split(measured: dict[str, float]) -> None:
    assert measured["gradients"] < 1e-5
