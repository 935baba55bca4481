"""Who is compared. A peer is a function of the inputs that returns the call to time, registered by a decorator:

    @logprobs("my library", ROWS, package="my-library", cuda=True)
    def _(x: Inputs) -> Function:
        from my_library import token_logprobs
        return lambda logits: token_logprobs(logits, x.tokens)

`logprobs` takes a function from the case's arguments to log-probs [N] and adds the rest of the op; `whole` takes one
that does the op from end to end. Raise Unavailable for a case that the peer cannot take: the reason is shown.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from srpo_kernels import (
    PolicyLossConfig,
    group_advantage,
    linear_policy_loss,
    linear_token_logprobs,
    policy_loss,
    token_logprobs,
)
from torch import Tensor

from benchmarks.inputs import CLIP_HIGH, CLIP_LOW, Inputs, Rewards

OURS, EAGER = "srpo_kernels", "torch eager"
ROWS = ("token_logprobs", "policy_loss")
ADVANTAGE = ("group_advantage",)
LINEAR = ("linear_token_logprobs", "linear_policy_loss", "linear_cross_entropy")

Function = Callable[..., Tensor]


class Unavailable(Exception):
    """This implementation cannot take this case; the message says why."""


def installed(package: str) -> str | None:
    """Its version, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass
class Call:
    """A call with arguments of its own layout, and the way back of their gradients."""

    function: Function
    arguments: tuple[Tensor, ...]
    packed: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Implementation:
    name: str
    ops: tuple[str, ...]
    build: Callable[..., Function | Call]
    package: str | None = None
    cuda: bool = False
    """Runs on CUDA only."""

    @property
    def reuses(self) -> bool:
        """Whether it can write into output buffers that it is given: its best case."""
        return "reuse" in inspect.signature(self.build).parameters

    def call(self, x: Inputs | Rewards, reuse: bool) -> Call:
        if self.package is not None and installed(self.package) is None:
            raise Unavailable(f"{self.package} is not installed")
        if self.cuda and x.device.type != "cuda":
            raise Unavailable("needs CUDA")
        built = self.build(x, reuse=reuse) if self.reuses else self.build(x)
        return built if isinstance(built, Call) else Call(built, x.arguments, lambda gradients: gradients)


IMPLEMENTATIONS: list[Implementation] = []


def whole(name: str, ops: tuple[str, ...], **options: Any) -> Callable[..., Any]:
    def register(build: Callable[..., Function | Call]) -> None:
        IMPLEMENTATIONS.append(Implementation(name, ops, build, **options))
    return register


def logprobs(name: str, ops: tuple[str, ...], **options: Any) -> Callable[..., Any]:
    def register(build: Callable[[Inputs], Function]) -> None:
        def composed(x: Inputs) -> Function:
            function = build(x)
            return lambda *arguments: x.objective(function(*arguments))
        IMPLEMENTATIONS.append(Implementation(name, ops, composed, **options))
    return register


CONFIG = PolicyLossConfig(clip_low=CLIP_LOW, clip_high=CLIP_HIGH)


def _loss_options(x: Inputs) -> dict[str, Any]:
    return {"old_logprobs": x.old_logprobs, "mask": x.mask if x.case.masked else None, "cu_seqlens": x.cu_seqlens,
            "config": CONFIG}


@whole(OURS, ROWS)
def _(x: Inputs) -> Function:
    if x.case.op == "policy_loss":
        return lambda logits: policy_loss(logits, x.tokens, x.advantages, **_loss_options(x))[0]
    mask = x.mask if x.case.masked else None
    return lambda logits: token_logprobs(logits, x.tokens, mask=mask, inplace_backward=x.case.backward)


@whole(OURS, LINEAR)
def _(x: Inputs) -> Function:
    mask = x.mask if x.case.masked else None
    if x.case.op == "linear_token_logprobs":
        return lambda hidden, weight: linear_token_logprobs(hidden, weight, x.tokens, mask=mask)
    if x.case.op == "linear_policy_loss":
        return lambda hidden, weight: linear_policy_loss(hidden, weight, x.tokens, x.advantages, **_loss_options(x))[0]

    ones = torch.ones_like(x.token_advantages)

    def cross_entropy(hidden: Tensor, weight: Tensor) -> Tensor:
        """Advantage 1 and ratio 1 give the cross entropy's gradient; its value is in the metrics."""
        loss, metrics = linear_policy_loss(hidden, weight, x.tokens, ones, mask=mask)
        return loss - loss.detach() - metrics.logprobs.sum() / metrics.tokens
    return cross_entropy


def _gathered(full: Tensor, x: Inputs) -> Tensor:
    return full.gather(1, x.tokens[:, None]).squeeze(1)


@whole(EAGER, ROWS)
def _(x: Inputs, reuse: bool) -> Function:
    """log_softmax in the logits' own dtype, into a buffer of its own where nothing is differentiated."""
    if reuse and not x.case.backward:
        buffer = torch.empty_like(x.arguments[0])
        return lambda logits: x.objective(_gathered(torch.log_softmax(logits, 1, out=buffer), x))
    return lambda logits: x.objective(_gathered(torch.log_softmax(logits, 1), x))


@logprobs("torch eager, float32", ROWS)
def _(x: Inputs) -> Function:
    _narrow(x)
    return lambda logits: _gathered(torch.log_softmax(logits, 1, dtype=torch.float32), x)


@logprobs("torch cross_entropy", ROWS)
def _(x: Inputs) -> Function:
    return lambda logits: -F.cross_entropy(logits, x.tokens, reduction="none")


@whole("torch.compile", ROWS)
def _(x: Inputs) -> Function:
    return torch.compile(
        lambda logits: x.objective(_gathered(torch.log_softmax(logits, 1, dtype=torch.float32), x)), dynamic=False)


@logprobs("trl selective_log_softmax", ROWS, package="trl")
def _(x: Inputs) -> Function:
    from trl.trainer.utils import selective_log_softmax
    row_mask = x.mask if x.case.masked else None
    return lambda logits: selective_log_softmax(logits, x.tokens, row_mask=row_mask)


def _ignored(x: Inputs) -> Tensor:
    return x.tokens.masked_fill(~x.mask, -100)


@logprobs("liger cross_entropy", ROWS, package="liger-kernel", cuda=True)
def _(x: Inputs) -> Function:
    from liger_kernel.transformers.functional import liger_cross_entropy
    targets = _ignored(x)
    return lambda logits: -liger_cross_entropy(logits, targets, reduction="none")


@whole("liger fused_selective_log_softmax", ("token_logprobs",), package="liger-kernel", cuda=True)
def _(x: Inputs) -> Call:
    from liger_kernel.transformers.grpo_loss import fused_selective_log_softmax
    if x.case.backward:
        raise Unavailable("has no backward pass")
    logits, tokens, mask = _liger_logits(x), x.padded(x.tokens), x.padded_mask.int()
    return Call(lambda logits: fused_selective_log_softmax(logits, tokens, 1.0, mask)[x.real], (logits,), lambda g: g)


@whole("liger triton_grpo_loss", ("policy_loss",), package="liger-kernel", cuda=True)
def _(x: Inputs) -> Call:
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss
    tokens, mask, old = x.padded(x.tokens), x.padded_mask.int(), x.padded(x.old_logprobs)

    def loss(logits: Tensor) -> Tensor:
        return triton_grpo_loss(logits, old, None, tokens, x.advantages, mask, temperature=1.0, beta=0.0,
                                eps_low=CLIP_LOW, eps_high=CLIP_HIGH, loss_type="dapo", reduce=True)[0]
    return Call(loss, (_liger_logits(x),), lambda gradients: (gradients[0][:, :-1][x.real],))


def _liger_logits(x: Inputs) -> Tensor:
    """[S, L + 1, V]: it drops the last position of each sequence."""
    sequences, longest = x.real.shape
    logits = x.arguments[0].new_zeros(sequences, longest + 1, x.case.vocab)
    logits[:, :-1][x.real] = x.arguments[0]
    return logits


@logprobs("quack cross_entropy", ROWS, package="quack-kernels", cuda=True)
def _(x: Inputs) -> Function:
    from quack.cross_entropy import cross_entropy
    targets = _ignored(x)
    return lambda logits: -cross_entropy(logits, targets, reduction="none", inplace_backward=True)


@logprobs(EAGER, LINEAR)
def _(x: Inputs) -> Function:
    return lambda hidden, weight: _gathered(torch.log_softmax(hidden @ weight.T, 1), x)


@logprobs("torch eager, float32", LINEAR)
def _(x: Inputs) -> Function:
    _narrow(x)
    return lambda hidden, weight: _gathered(torch.log_softmax(hidden @ weight.T, 1, dtype=torch.float32), x)


@whole("torch.compile", LINEAR)
def _(x: Inputs) -> Function:
    return torch.compile(lambda hidden, weight: x.objective(
        _gathered(torch.log_softmax(hidden @ weight.T, 1, dtype=torch.float32), x)), dynamic=False)


@logprobs("torch linear_cross_entropy", LINEAR)
def _(x: Inputs) -> Function:
    """As it is without options: a linear layer, then cross_entropy."""
    function, _ = _linear_cross_entropy()
    return lambda hidden, weight: -function(hidden, weight, x.tokens, reduction="none")


@logprobs("torch linear_cross_entropy, chunked", LINEAR)
def _(x: Inputs) -> Function:
    """Over chunks of tokens, whose number it chooses, recomputed in the backward pass."""
    function, options = _linear_cross_entropy()
    return lambda hidden, weight: -function(hidden, weight, x.tokens, reduction="none", options=options())


@whole("torch linear_cross_entropy, mean", ("linear_cross_entropy",))
def _(x: Inputs) -> Function:
    """Chunked, with both gradients in the forward pass: for a loss that is a plain mean."""
    function, options = _linear_cross_entropy()
    targets = _ignored(x)
    return lambda hidden, weight: function(hidden, weight, targets, ignore_index=-100, options=options())


def _linear_cross_entropy() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise Unavailable(f"not in torch {torch.__version__}")
    return F.linear_cross_entropy, torch.nn.LinearCrossEntropyOptions


@logprobs("trl ChunkedLogProbFunction", LINEAR, package="trl")
def _(x: Inputs) -> Function:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as columns
    return lambda hidden, weight: ChunkedLogProbFunction.apply(
        hidden, weight, None, x.tokens, 1.0, columns, None, 1.0, ())[0]


@whole("liger LigerFusedLinearGRPOLoss", ("linear_policy_loss",), package="liger-kernel")
def _(x: Inputs) -> Call:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    module = LigerFusedLinearGRPOLoss(beta=0.0, epsilon_low=CLIP_LOW, epsilon_high=CLIP_HIGH, loss_type="dapo",
                                      use_ref_model=False)
    tokens, mask, old = x.padded(x.tokens), x.padded_mask.float(), x.padded(x.old_logprobs)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return module(hidden, weight, tokens, mask, x.advantages, old_per_token_logps=old)[0]
    return Call(loss, (x.padded(x.arguments[0]), x.arguments[1]),
                lambda gradients: (gradients[0][x.real], *gradients[1:]))


@whole("liger fused_linear_cross_entropy", ("linear_cross_entropy",), package="liger-kernel", cuda=True)
def _(x: Inputs) -> Function:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    targets = _ignored(x)
    return lambda hidden, weight: liger_fused_linear_cross_entropy(hidden, weight, targets, accum_dtype=torch.float32)


@logprobs("cut-cross-entropy", LINEAR, package="cut-cross-entropy", cuda=True)
def _(x: Inputs) -> Function:
    from cut_cross_entropy import linear_cross_entropy
    targets = _ignored(x)
    return lambda hidden, weight: -linear_cross_entropy(hidden, weight, targets, reduction="none")


@whole("quack chunked_linear_cross_entropy", ("linear_cross_entropy",), package="quack-kernels", cuda=True)
def _(x: Inputs) -> Function:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy
    targets = _ignored(x)
    return lambda hidden, weight: chunked_linear_cross_entropy(hidden, weight, targets)


@whole(OURS, ADVANTAGE)
def _(x: Rewards) -> Function:
    valid = x.valid if x.case.masked else None
    return lambda: group_advantage(x.rewards, x.offsets, valid=valid)


@whole(EAGER, ADVANTAGE)
def _(x: Rewards) -> Function:
    return _advantage(x)


@whole("torch.compile", ADVANTAGE)
def _(x: Rewards) -> Function:
    return torch.compile(_advantage(x), dynamic=False)


def _advantage(x: Rewards) -> Function:
    """As trainers write it: a [prompts, samples] view where groups are equal and whole, sums by index otherwise."""
    prompts = len(x.lengths)
    if not (x.case.ragged or x.case.masked):
        def equal() -> Tensor:
            rewards = x.rewards.view(prompts, -1)
            spread = rewards.std(1, correction=0, keepdim=True) + 1e-6
            return ((rewards - rewards.mean(1, keepdim=True)) / spread).flatten()
        return equal

    def grouped(values: Tensor) -> Tensor:
        return values.new_zeros(prompts).index_add_(0, x.groups, values)

    def unequal() -> Tensor:
        used = x.valid.to(x.rewards)
        count = grouped(used).clamp(min=1)
        centred = (x.rewards - (grouped(x.rewards * used) / count)[x.groups]) * used
        return centred / ((grouped(centred.square()) / count).sqrt() + 1e-6)[x.groups]
    return unequal


def _narrow(x: Inputs) -> None:
    if x.case.dtype == "fp32":
        raise Unavailable("the same as torch eager for float32")
