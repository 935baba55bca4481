"""A benchmark case, its inputs, and what every implementation should return for them, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
SEQUENCE = 32  # mean length, in tokens
GROUP = 16  # mean samples of a prompt
# Log-ratios to the old policy, away from log(1 - 0.2) and log(1 + 0.28): no rounding may change what is clipped.
LOG_RATIOS = (-0.5, -0.1, 0.0, 0.1, 0.5)


@dataclass(frozen=True)
class Case:
    op: str
    dtype: str
    rows: int
    vocab: int = 0
    hidden: int = 0
    backward: bool = False
    masked: float = 0.0
    ragged: bool = False
    frozen: bool = False
    """The weight gets no gradient."""

    @property
    def label(self) -> str:
        shape = "x".join(str(size) for size in (self.rows, self.vocab, self.hidden) if size)
        marks = [f"masked {self.masked:.0%}" * bool(self.masked), "ragged" * self.ragged, "frozen" * self.frozen]
        direction = "forward+backward" if self.backward else "forward"
        return " ".join(filter(None, [self.op, direction, self.dtype, shape, *marks]))

    @property
    def active(self) -> int:
        """Rows that are not masked."""
        return self.rows - round(self.rows * self.masked)


def lengths_of(total: int, parts: int, ragged: bool, generator: torch.Generator) -> Tensor:
    """Sizes [parts], each at least 1, that add up to the total."""
    if ragged:
        cuts = 1 + torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values
    else:
        cuts = torch.arange(1, parts) * total // parts
    return torch.cat([torch.tensor([0]), cuts, torch.tensor([total])]).diff()


def leaves_of(case: Case, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What is differentiated. Logits are copied, as they may be written over."""
    wanted = [True, not case.frozen][: len(arguments)]
    return tuple((argument if case.hidden else argument.clone()).detach().requires_grad_(needs)
                 for argument, needs in zip(arguments, wanted, strict=True))


class Rewards:
    """Inputs of group_advantage: 0 or 1 for each of `rows` samples, in groups of about GROUP."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        host = torch.Generator().manual_seed(0)
        self.lengths = lengths_of(case.rows, max(1, case.rows // GROUP), case.ragged, host)
        self.groups = torch.arange(len(self.lengths)).repeat_interleave(self.lengths)
        self.rewards = torch.randint(2, (case.rows,), generator=host).to(DTYPES[case.dtype])
        self.valid = torch.ones(case.rows, dtype=torch.bool)
        self.valid[torch.randperm(case.rows, generator=host)[case.active:]] = False
        self.value = torch.zeros(case.rows, dtype=torch.float64)
        for group in range(len(self.lengths)):
            used = (self.groups == group) & self.valid
            rewards = self.rewards[used].double()
            if len(rewards) > 1 and rewards.max() > rewards.min():
                self.value[used] = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)
        self.offsets = torch.cat([torch.tensor([0]), self.lengths.cumsum(0)])
        for name in ("lengths", "groups", "rewards", "valid", "value", "offsets"):
            setattr(self, name, getattr(self, name).to(device))
        self.arguments: tuple[Tensor, ...] = ()
        self.leaves = self.arguments
        self.grad_output = None

    def value_error(self, value: Tensor) -> float:
        return float((value.detach().double() - self.value).abs().max())

    def gradient_error(self, gradients: tuple[Tensor, ...]) -> float:
        raise TypeError("advantages have no gradient")


class Inputs:
    """Tensors of a case with a vocabulary. `arguments` are what is differentiated: (logits,) or (hidden, weight).

    Rows are the packed tokens of `lengths` sequences; `padded` lays them out as [sequences, longest] for peers that
    want that.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        host = torch.Generator().manual_seed(0)
        generator = torch.Generator(device).manual_seed(0)
        dtype = DTYPES[case.dtype]
        rows, sequences = case.rows, max(1, case.rows // SEQUENCE)

        def normal(*shape: int, scale: float = 1.0, to: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=to, device=device).normal_(0, scale, generator=generator)

        self.arguments: tuple[Tensor, ...]
        if case.hidden:
            self.arguments = (normal(rows, case.hidden, to=dtype),
                              normal(case.vocab, case.hidden, scale=3 * case.hidden**-0.5, to=dtype))
        else:
            self.arguments = (normal(rows, case.vocab, scale=3, to=dtype),)
        self.lengths = lengths_of(rows, sequences, case.ragged, host).to(device)
        self.cu_seqlens = torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])
        self.tokens = torch.randint(case.vocab, (rows,), generator=host).to(device)
        mask = torch.ones(rows, dtype=torch.bool)
        mask[torch.randperm(rows, generator=host)[case.active:]] = False
        self.mask = mask.to(device)
        self.advantages = normal(sequences)
        self.token_advantages = self.advantages.repeat_interleave(self.lengths)
        position = torch.arange(int(self.lengths.max()), device=device)
        self.real = position < self.lengths[:, None]
        self.padded_index = (self.cu_seqlens[:-1, None] + position).clamp(max=rows - 1)

        logprobs = torch.cat([self._logprobs(block) for block, _ in self._blocks()])
        choice = torch.randint(len(LOG_RATIOS), (rows,), generator=host)
        choice[mask.nonzero()[0]] = LOG_RATIOS.index(0.0)  # one token at least has a gradient
        self.old_logprobs = logprobs.float() - torch.tensor(LOG_RATIOS)[choice].to(device)
        logprobs.requires_grad_()
        with torch.enable_grad():
            value = self.objective(logprobs)
        self.grad_output = None if value.dim() == 0 else normal(rows) / rows
        (self.coefficients,) = torch.autograd.grad(
            value, logprobs, None if self.grad_output is None else self.grad_output.double())
        self.value = value.detach()

    def objective(self, logprobs: Tensor) -> Tensor:
        """What the case's op returns, from the log-probs [N] of its tokens."""
        if self.case.op.endswith("token_logprobs"):
            return logprobs.masked_fill(~self.mask, 0)
        if self.case.op == "linear_cross_entropy":
            return -logprobs.masked_fill(~self.mask, 0).sum() / self.case.active
        ratio = (logprobs - self.old_logprobs).exp()
        surrogate = torch.minimum(ratio * self.token_advantages,
                                  ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * self.token_advantages)
        return -surrogate.masked_fill(~self.mask, 0).sum() / self.case.active

    @cached_property
    def leaves(self) -> tuple[Tensor, ...]:
        return leaves_of(self.case, self.arguments)

    def padded(self, values: Tensor) -> Tensor:
        """[N, ...] as [sequences, longest, ...], with anything where `real` is False."""
        return values[self.padded_index]

    @property
    def padded_mask(self) -> Tensor:
        return self.real & self.padded(self.mask)

    def value_error(self, value: Tensor) -> float:
        return float((value.detach().double() - self.value).abs().max())

    def gradient_error(self, gradients: tuple[Tensor, ...]) -> float:
        """Largest error of any gradient, in units of that gradient's largest entry."""
        if not self.case.hidden:
            return _relative((gradients[0][rows], self._dlogits(block, rows)) for block, rows in self._blocks())
        return max(_relative([pair]) for pair in zip(gradients, self._linear_gradients, strict=not self.case.frozen))

    @cached_property
    def _linear_gradients(self) -> tuple[Tensor, Tensor]:
        hidden, weight = (argument.double() for argument in self.arguments)
        dhidden, dweight = torch.zeros_like(hidden), torch.zeros_like(weight)
        for block, rows in self._blocks():
            dlogits = self._dlogits(block, rows)
            dhidden[rows] = dlogits @ weight
            dweight.addmm_(dlogits.T, hidden[rows])
        return dhidden, dweight

    def _blocks(self) -> Iterator[tuple[tuple[Tensor, Tensor], slice]]:
        """Float64 logits and their tokens, a few rows at a time."""
        step = max(1, 2**25 // self.case.vocab)
        weight = self.arguments[1].double().T if self.case.hidden else None
        for start in range(0, self.case.rows, step):
            rows = slice(start, start + step)
            logits = self.arguments[0][rows].double()
            yield (logits if weight is None else logits @ weight, self.tokens[rows, None]), rows

    @staticmethod
    def _logprobs(block: tuple[Tensor, Tensor]) -> Tensor:
        logits, tokens = block
        return (logits.gather(1, tokens) - logits.logsumexp(1, keepdim=True)).squeeze(1)

    def _dlogits(self, block: tuple[Tensor, Tensor], rows: slice) -> Tensor:
        logits, tokens = block
        coefficients = self.coefficients[rows, None]
        gradient = logits.softmax(1).mul_(-coefficients)
        return gradient.scatter_add_(1, tokens, coefficients)


def _relative(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    error = largest = 0.0
    for actual, expected in pairs:
        difference = float((actual.detach().double() - expected).abs().max())
        error = difference if difference != difference else max(error, difference)  # a NaN stays
        largest = max(largest, float(expected.abs().max()))
    return error / largest
