"""token_logprobs against log_softmax in fp64, for both backends, and the traps that naive versions fall into."""

from __future__ import annotations

import naive
import pytest
import torch
from backends import COMPILED
from hypothesis import given, settings
from hypothesis import strategies as st
from srpo_kernels import extension, statistics, token_logprobs
from srpo_kernels.ops import Operators
from torch import Tensor

BACKENDS = [*COMPILED, "torch"]
CPP = Operators("srpo", one_pass=True)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Rounding of a stored gradient, relative to the largest: half a unit in the last place, and fp32 arithmetic before it.
GRADIENT_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float64: 1e-13}
both = pytest.mark.parametrize("backend", BACKENDS)


def make(rows: int, width: int, dtype: torch.dtype = torch.float32, scale: float = 4.0) -> tuple[Tensor, Tensor]:
    return (torch.randn(rows, width) * scale).to(dtype), torch.randint(0, width, (rows,))


def compare(logits: Tensor, tokens: Tensor, backend: str, *, temperature: float = 1.0, vocab_size: int | None = None,
            tolerance: float = 2e-6, **options: object) -> None:
    """Log-probs, entropies and the whole gradient of a random combination of both."""
    exact = logits.detach().double().requires_grad_()
    want, want_entropy = naive.logprobs(exact, tokens, temperature, vocab_size)
    got_from = logits.detach().requires_grad_()
    got, entropy = token_logprobs(got_from, tokens, temperature=temperature, return_entropy=True, vocab_size=vocab_size,
                                  backend=backend, **options)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=tolerance, atol=tolerance)
    a, b = torch.randn(2, len(tokens), dtype=torch.float64)
    (want * a + want_entropy * b).sum().backward()
    (got * a.to(got.dtype) + entropy * b.to(got.dtype)).sum().backward()
    assert got_from.grad is not None and exact.grad is not None and got_from.grad.dtype == logits.dtype
    bound = GRADIENT_TOLERANCE[logits.dtype]
    scale = max(1.0, float(exact.grad.abs().max()))  # of the gradient, and of the incoming one that cancels in it
    torch.testing.assert_close(got_from.grad.double(), exact.grad, rtol=bound, atol=bound * scale)


@both
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 63, 64, 65, 100, 4095, 4096, 4097, 4113, 8200])
def test_matches_log_softmax(backend: str, dtype: torch.dtype, width: int) -> None:
    compare(*make(5, width, dtype), backend)


@both
@pytest.mark.parametrize("temperature", [0.1, 0.6, 1.7])
def test_temperature(backend: str, temperature: float) -> None:
    compare(*make(7, 500), backend, temperature=temperature, tolerance=5e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_production_width(dtype: torch.dtype) -> None:
    compare(*make(3, 151936, dtype), COMPILED[0])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 9), st.integers(1, 200), st.sampled_from(DTYPES), st.sampled_from(BACKENDS),
       st.sampled_from([0.01, 1.0, 30.0]), st.sampled_from(["dense", "transposed", "rows", "columns"]),
       st.integers(0, 99))
def test_property_shapes_types_and_strides(rows: int, width: int, dtype: torch.dtype, backend: str, scale: float,
                                           layout: str, seed: int) -> None:
    torch.manual_seed(seed)
    logits, tokens = make(rows, width, dtype, scale)
    if layout == "transposed":
        logits = logits.T.contiguous().T
    elif layout == "rows":
        logits = torch.stack([logits, logits], 1)[:, 0]
    elif layout == "columns":
        logits = torch.stack([logits, logits], 2)[:, :, 0]
    if rows:
        compare(logits, tokens, backend, tolerance=1e-5)
    else:
        assert token_logprobs(logits, tokens, backend=backend).shape == (0,)


@both
@pytest.mark.parametrize("vocab_size", [1, 40, 64, 99])
def test_padding_takes_no_part(backend: str, vocab_size: int) -> None:
    logits, _ = make(6, 100)
    tokens = torch.randint(0, vocab_size, (6,))
    compare(logits, tokens, backend, vocab_size=vocab_size)
    logits[:, vocab_size:] = torch.nan
    logits.requires_grad_()
    got = token_logprobs(logits, tokens, vocab_size=vocab_size, backend=backend)
    got.sum().backward()
    assert got.isfinite().all() and logits.grad is not None
    assert (logits.grad[:, vocab_size:] == 0).all() and logits.grad.isfinite().all()


@both
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_large_common_offset_is_exact(backend: str, temperature: float) -> None:
    logits = torch.randint(-800, 800, (8, 300)) / 64
    tokens = torch.randint(0, 300, (8,))
    shifted = logits + 2.0**14  # exact in fp32: the distribution is the same
    want, _ = naive.logprobs(logits, tokens, temperature)
    got = token_logprobs(shifted, tokens, temperature=temperature, backend=backend)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    scaled = shifted / temperature
    textbook = scaled.gather(1, tokens[:, None]).squeeze(1) - torch.logsumexp(scaled, 1)
    assert (textbook - want).abs().max() > 1e-4, "the case no longer catches lse - z_y"


@both
@pytest.mark.parametrize("width", [300, 9000])
def test_minus_infinity_in_whole_tiles(backend: str, width: int) -> None:
    logits, _ = make(4, width)
    logits[0, : width // 2] = -torch.inf  # the first tile has no maximum
    logits[1, width // 2 :] = -torch.inf
    logits[2, :-1] = -torch.inf  # one token is certain
    tokens = torch.tensor([width - 1, 0, width - 1, 3])
    compare(logits, tokens, backend)
    logprobs, entropy = token_logprobs(logits, tokens, return_entropy=True, backend=backend)
    assert logprobs[2] == 0 and entropy[2] == 0
    p = torch.softmax(logits.double(), 1)
    assert (p * p.log()).sum(1)[:3].isnan().all(), "the case no longer catches 0 * -inf"


@both
def test_forbidden_token_and_low_logits(backend: str) -> None:
    logits, tokens = make(2, 50)
    logits[0, tokens[0]] = -torch.inf
    logits -= 3000.0  # a running maximum that starts at 0 would find nothing
    got = token_logprobs(logits, tokens, backend=backend)
    assert got[0] == -torch.inf
    torch.testing.assert_close(got[1:].double(), naive.logprobs(logits, tokens)[0][1:], rtol=2e-6, atol=2e-6)
    from_zero = logits.amax(1, keepdim=True).clamp(min=0)
    assert ((logits - from_zero).exp().sum(1) == 0).all(), "the case no longer catches a maximum that starts at 0"


@both
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("rest", ["random", "-inf"])
def test_nan_and_infinity_are_not_hidden(backend: str, bad: float, rest: str) -> None:
    logits, tokens = make(3, 5000)
    if rest == "-inf":
        logits[1] = -torch.inf
    logits[1, 4321] = bad
    got, entropy = token_logprobs(logits, tokens, return_entropy=True, backend=backend)
    assert got.isnan().tolist() == entropy.isnan().tolist() == [False, True, False]


@both
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0x7FC00001, 0x7F800001, 0x7FC00080, -1, -0x400000])
@pytest.mark.parametrize("at", [0, 4321])
def test_every_nan_is_one(backend: str, bits: int, at: int) -> None:
    """Whatever its other bits: a GPU's own is 0x7fffffff, and an exponent added to it as an integer makes a number."""
    logits, tokens = make(2, 5000)
    logits[1, at] = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    leaf = logits.requires_grad_()
    got = token_logprobs(leaf, tokens, backend=backend)
    got.sum().backward()
    assert got.isnan().tolist() == [False, True]
    assert leaf.grad is not None and leaf.grad[1].isnan().all() and leaf.grad[0].isfinite().all()


@both
def test_likely_token_keeps_its_gradient(backend: str) -> None:
    """p - 1 = -1e-4 survives bf16; formed after rounding p to bf16, it would be 0."""
    logits = torch.zeros(1, 1001, dtype=torch.bfloat16)
    logits[0, 0] = 16.125
    tokens = torch.zeros(1, dtype=torch.int64)
    compare(logits, tokens, backend)
    p = torch.softmax(logits.float(), 1)[0, 0]
    assert p.bfloat16() - 1 == 0 and p - 1 != 0, "the case no longer catches rounding before subtraction"


@both
def test_masked_rows_are_exactly_zero(backend: str) -> None:
    logits, tokens = make(6, 70)
    mask = torch.tensor([True, False, False, False, True, False])
    logits[1], logits[2], logits[3, 5] = torch.nan, torch.inf, -torch.inf
    tokens[~mask] = -100
    logits.requires_grad_()
    got, entropy = token_logprobs(logits, tokens, return_entropy=True, mask=mask, backend=backend)
    (got.square().sum() + entropy.square().sum()).backward()
    assert (got[~mask] == 0).all() and (entropy[~mask] == 0).all()
    assert logits.grad is not None and (logits.grad[~mask] == 0).all()
    want, _ = naive.logprobs(logits[mask], tokens[mask])
    torch.testing.assert_close(got[mask].double(), want, rtol=2e-6, atol=2e-6)
    assert logits.grad[mask].abs().max() > 0


@both
def test_expanded_grad_output_and_rows(backend: str) -> None:
    logits, tokens = make(4, 90)
    leaf = logits.clone().requires_grad_()
    got = token_logprobs(leaf, tokens, backend=backend)
    got.backward(torch.tensor(1.0).expand(4))
    exact = logits.double().requires_grad_()
    naive.logprobs(exact, tokens)[0].sum().backward()
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-6, atol=1e-6)
    compare(logits[:1].expand(4, 90), tokens, backend)


@pytest.mark.parametrize("backend", [COMPILED[0], "torch"])
def test_more_rows_than_a_grid_dimension(backend: str) -> None:
    compare(*make(70_000, 5), backend)


@both
def test_row_offsets_beyond_32_bits(backend: str) -> None:
    stride = 2**31 + 128  # untouched pages of this storage are never allocated
    logits = torch.empty(stride + 64, dtype=torch.bfloat16).as_strided((2, 64), (stride, 1))
    values, tokens = make(2, 64, torch.bfloat16)
    logits.copy_(values)
    got = token_logprobs(logits, tokens, backend=backend)
    assert torch.equal(got, token_logprobs(values, tokens, backend=backend))


@both
def test_inplace_backward(backend: str) -> None:
    logits, tokens = make(5, 80)
    leaf = logits.clone().requires_grad_()
    product = leaf * 1.0
    token_logprobs(product, tokens, inplace_backward=True, backend=backend).sum().backward()
    plain = logits.clone().requires_grad_()
    token_logprobs(plain, tokens, backend=backend).sum().backward()
    assert torch.equal(leaf.grad, plain.grad) and torch.equal(product.detach(), plain.grad)
    for owned in (leaf, leaf.view(5, 80), leaf[:]):
        with pytest.raises(ValueError, match="leaf"):
            token_logprobs(owned, tokens, inplace_backward=True, backend=backend)


@both
def test_inplace_backward_over_rows_that_share_memory(backend: str) -> None:
    """There is no place for their gradients: an error, and no gradient of some rows for all."""
    logits, tokens = make(1, 80)
    rows = (logits.requires_grad_() * 1.0).expand(5, 80)
    loss = token_logprobs(rows, tokens.expand(5), inplace_backward=True, backend=backend).sum()
    with pytest.raises(RuntimeError, match="single memory location"):
        loss.backward()


@both
def test_gradients_of_gradients_are_refused(backend: str) -> None:
    logits, tokens = make(2, 10)
    loss = token_logprobs(logits.requires_grad_(), tokens, backend=backend).sum()
    with pytest.raises(RuntimeError, match="gradients of gradients|once_differentiable"):
        torch.autograd.grad(loss, logits, create_graph=True)[0].sum().backward()


@both
def test_inplace_backward_cannot_corrupt_another_gradient(backend: str) -> None:
    logits, tokens = make(5, 80)
    product = logits.requires_grad_() * 1.0
    other = product.square().sum()
    loss = token_logprobs(product, tokens, inplace_backward=True, backend=backend).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


def test_gradcheck() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(0, 7, (4,))

    def both_outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(x, tokens, temperature=0.8, return_entropy=True, vocab_size=7)  # type: ignore[return-value]

    assert torch.autograd.gradcheck(both_outputs, (logits,))


def test_every_half_and_bfloat16_is_read_exactly() -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        rows = values.unsqueeze(1).repeat(1, 16)  # the vector path
        got = CPP.statistics(rows, torch.zeros(len(rows), dtype=torch.int64), 1.0, 16)[:, 0]
        real = ~values.isnan()
        assert torch.equal(got[real], values[real].float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_rounded_like_torch(dtype: torch.dtype) -> None:
    """Same fp32 gradient, then to nearest even; NaN stays NaN."""
    logits, tokens = make(3, 256, dtype)
    grad = torch.randn(3, 4)
    grad[1] = torch.nan
    stats = CPP.statistics(logits, tokens, 1.0, 256)
    wide = CPP.statistics_backward(grad, stats, logits.float(), tokens, 1.0, 256)
    narrow = CPP.statistics_backward(grad, stats, logits, tokens, 1.0, 256)
    torch.testing.assert_close(narrow, wide.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("columns", [0, 30, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extension_statistics_match_torch(dtype: torch.dtype, columns: int) -> None:
    logits, _ = make(6, 64, dtype)
    tokens = torch.tensor([-5, 0, 29, 30, 63, 64])  # other shards' tokens are outside
    want = statistics.statistics(logits, tokens, 0.9, columns)
    got = CPP.statistics(logits, tokens, 0.9, columns)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    grad = torch.randn(6, 4)
    grad[2] = 0
    bound = GRADIENT_TOLERANCE[dtype]
    expected = statistics.statistics_backward(grad, want, logits, tokens, 0.9, columns)
    result = CPP.statistics_backward(grad, got, logits, tokens, 0.9, columns)
    torch.testing.assert_close(result, expected, rtol=bound, atol=bound)
    assert (result[2] == 0).all()
    for module, kept in ((statistics, expected), (CPP, result)):
        over = logits.clone()
        module.statistics_backward_(grad, want if module is statistics else got, over, tokens, 0.9, columns)
        assert torch.equal(over, kept)


def test_results_do_not_depend_on_threads() -> None:
    logits, tokens = make(33, 5000)
    want = CPP.statistics(logits, tokens, 1.0, 5000)
    torch.set_num_threads(2)
    assert extension.get_num_threads() == 2
    assert torch.equal(CPP.statistics(logits, tokens, 1.0, 5000), want)
    extension.set_num_threads(1)
    assert extension.get_num_threads() == 1
    extension.set_num_threads(0)
    with pytest.raises(ValueError, match="threads"):
        extension.set_num_threads(-1)


def test_operator_registrations() -> None:
    logits, tokens = make(3, 40)
    stats = CPP.statistics(logits, tokens, 1.0, 40)
    ops = torch.ops.srpo
    torch.library.opcheck(ops.logprob_statistics.default, (logits.requires_grad_(), tokens, 1.0, 40))
    rest = (torch.randn(3, 4), stats, logits.detach(), tokens, 1.0, 40)
    torch.library.opcheck(ops.logprob_statistics_backward.default, rest)
    torch.library.opcheck(ops.logprob_statistics_backward_.default, rest)


@both
@pytest.mark.parametrize(("change", "error", "message"), [
    ({"tokens": torch.tensor([0, 1, 10])}, IndexError, r"within \[0, 10\), got 10"),
    ({"tokens": torch.tensor([0, -1, 9])}, IndexError, "got -1"),
    ({"tokens": torch.tensor([0, 1, 8]), "vocab_size": 8}, IndexError, "got 8"),
    ({"tokens": torch.tensor([0, 1])}, ValueError, r"tokens must be \[3\]"),
    ({"tokens": torch.tensor([0, 1, 2], dtype=torch.int32)}, ValueError, "int64"),
    ({"vocab_size": 11}, ValueError, "vocab_size must be within the 10 columns"),
    ({"temperature": 0.0}, ValueError, "temperature"),
    ({"logits": torch.zeros(3, 10, 1)}, ValueError, r"\[N, V\]"),
    ({"mask": torch.ones(3)}, ValueError, "mask must be"),
])
def test_bad_input(backend: str, change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"logits": torch.zeros(3, 10), "tokens": torch.tensor([0, 1, 2]), "backend": backend, **change}
    with pytest.raises(error, match=message):
        token_logprobs(**arguments)  # type: ignore[arg-type]


def test_float64_stays_float64_and_is_not_for_the_extension() -> None:
    logits, tokens = torch.randn(3, 10, dtype=torch.float64), torch.tensor([0, 1, 2])
    assert token_logprobs(logits, tokens).dtype == torch.float64
    compare(logits, tokens, "torch", tolerance=1e-13)
    with pytest.raises(ValueError, match='"cpp" cannot take torch.float64'):
        token_logprobs(logits, tokens, backend="cpp")
