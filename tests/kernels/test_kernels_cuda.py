"""The CUDA kernels, three ways: run on the CPU thread by thread (cuda_emulation.cpp), compiled for sm_90a by nvcc where
there is one, and compared with the C++ operators on a GPU where there is one (no GPU has run them yet)."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from srpo_kernels import statistics as oracle
from torch import Tensor
from torch.utils.cpp_extension import include_paths

from benchmarks.gpu_host import tool
from benchmarks.static_cuda import with_tile

ROOT = Path(__file__).parents[2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GUARD = 64  # elements before and after, which nothing may touch
MANY, ONE = 132, 1  # multiprocessors: rows are split over blocks, or blocks go from row to row
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}
every_type = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Rows(NamedTuple):
    """Logits [N, V] somewhere in a larger buffer."""

    logits: Tensor
    buffer: Tensor


def place(logits: Tensor, offset: int = 0, stride: int | None = None) -> Rows:
    """The logits, `offset` elements past an address divisible by 16, with NaN around them."""
    rows, width = logits.shape
    stride = stride or width
    buffer = torch.full((2 * GUARD + offset + rows * stride,), torch.nan, dtype=logits.dtype)
    inside = buffer.as_strided((rows, width), (stride, 1), GUARD + offset)
    inside.copy_(logits)
    return Rows(inside, buffer)


class Buffer(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("touched", ctypes.c_void_p)]


class Call(ctypes.Structure):
    _fields_ = [("element_bytes", ctypes.c_int), ("bfloat16", ctypes.c_int), ("rows", ctypes.c_int64),
                ("stride", ctypes.c_int64), ("columns", ctypes.c_int64), ("columns_total", ctypes.c_int64),
                ("temperature", ctypes.c_double), ("multiprocessors", ctypes.c_int64), ("read", Buffer),
                ("written", Buffer)]


class Emulation:
    """The kernels on the CPU. After a call, `read` and `written` [N, V] say how often each element was, and `splits`
    how many blocks shared a row; an access outside the buffers, or not aligned, ends the process."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.gradient.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int64]
        self._library.scale.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64]
        self._library.statistics.argtypes = [ctypes.c_void_p] * 4

    def _run(self, name: str, rows: Rows, out: Rows | None, columns: int, temperature: float, multiprocessors: int,
             arguments: list[Any]) -> None:
        """`arguments`: those of the C function after the call itself."""
        def watch(target: Rows) -> tuple[Buffer, Tensor]:
            buffer = target.buffer
            touched = torch.zeros(buffer.nbytes, dtype=torch.uint8)
            return Buffer(buffer.data_ptr(), buffer.nbytes, touched.data_ptr()), touched

        def count(target: Rows, touched: Tensor) -> Tensor:
            each = touched.view(-1, target.buffer.element_size())
            assert (each == each[:, :1]).all()
            inside = each[:, 0].as_strided(
                target.logits.shape, tuple(s * each.shape[1] for s in target.logits.stride()),
                target.logits.storage_offset() * each.shape[1])
            assert inside.sum() == each[:, 0].sum(), "an access outside the rows"
            return inside

        (read, read_touched), (written, written_touched) = watch(rows), watch(out or rows)
        logits = rows.logits
        call = Call(logits.element_size(), logits.dtype == torch.bfloat16, *logits.shape[:1], logits.stride(0), columns,
                    logits.shape[1], temperature, multiprocessors, read, written)
        self.splits = getattr(self._library, name)(ctypes.byref(call), *arguments)
        self.read, self.written = count(rows, read_touched), count(out or rows, written_touched)

    def statistics(self, rows: Rows, tokens: Tensor, temperature: float = 1.0, columns: int | None = None,
                   multiprocessors: int = MANY) -> Tensor:
        result = torch.full((len(tokens), 4), torch.nan)
        columns = rows.logits.shape[1] if columns is None else columns
        self._run("statistics", rows, None, columns, temperature, multiprocessors,
                  [rows.logits.data_ptr(), tokens.data_ptr(), result.data_ptr()])
        return result

    def gradient(self, grad: Tensor, stats: Tensor, rows: Rows, tokens: Tensor, temperature: float = 1.0,
                 columns: int | None = None, multiprocessors: int = MANY, out: Rows | None = None) -> Tensor:
        """Written over the logits unless there is an `out`."""
        columns = rows.logits.shape[1] if columns is None else columns
        target = (out or rows).logits
        self._run("gradient", rows, out, columns, temperature, multiprocessors,
                  [grad.data_ptr(), stats.data_ptr(), rows.logits.data_ptr(), tokens.data_ptr(), target.data_ptr(),
                   target.stride(0)])
        return target

    def scale(self, rows: Rows, factors: Tensor, multiprocessors: int = MANY) -> None:
        self._run("scale", rows, None, rows.logits.shape[1], 1.0, multiprocessors,
                  [rows.logits.data_ptr(), factors.data_ptr(), factors.stride(0)])


def emulate(library: Path, *flags: str) -> Emulation:
    # Not unique: libraries with different tiles would share one's stacks.
    torch_headers = [f"-isystem{path}" for path in include_paths()]
    subprocess.run(["g++", "-std=c++20", "-O2", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC",
                    "-fno-gnu-unique", "-Icsrc/cuda", *torch_headers, *flags, "tests/kernels/cuda_emulation.cpp", "-o",
                    str(library)],
                   cwd=ROOT, check=True)
    return Emulation(library)


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    return emulate(tmp_path_factory.mktemp("emulation") / "rows.so")


def make(rows: int, width: int, dtype: torch.dtype = torch.float32, scale: float = 4.0) -> tuple[Tensor, Tensor]:
    return (torch.randn(rows, width) * scale).to(dtype), torch.randint(0, width, (rows,))


def derived(stats: Tensor, temperature: float) -> Tensor:
    """Log-prob and entropy."""
    m, s, t, x = stats.double().unbind(1)
    return torch.stack([(x - m) / temperature - s.log(), s.log() - t / s], 1)


def exact_statistics(logits: Tensor, tokens: Tensor, temperature: float, columns: int) -> Tensor:
    return oracle.statistics(logits.double(), tokens, temperature, columns)


def check_statistics(got: Tensor, logits: Tensor, tokens: Tensor, temperature: float = 1.0,
                     columns: int | None = None) -> None:
    want = exact_statistics(logits, tokens, temperature, logits.shape[1] if columns is None else columns)
    assert torch.equal(got[:, [0, 3]].double(), want[:, [0, 3]])
    torch.testing.assert_close(derived(got, temperature), derived(want, temperature), rtol=2e-6, atol=2e-6)


# A vector is 4 or 8 elements, a round of loads 4096 or 8192, a segment 8192 or 16384.
WIDTHS = [1, 2, 7, 8, 9, 31, 255, 2048, 4097, 8192, 16383, 16384, 16400, 40003]


@every_type
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("multiprocessors", [ONE, MANY])
def test_statistics(emulation: Emulation, dtype: torch.dtype, width: int, multiprocessors: int) -> None:
    logits, tokens = make(6, width, dtype)
    rows = place(logits)
    got = emulation.statistics(rows, tokens, multiprocessors=multiprocessors)
    check_statistics(got, logits, tokens)
    assert (emulation.splits > 1) == (multiprocessors == MANY and width * logits.element_size() >= 2**15 + 16)
    of_target = torch.zeros_like(emulation.read).scatter_(1, tokens[:, None], 1)
    assert torch.equal(emulation.read, 1 + of_target), "one read, and the target's"
    assert not emulation.written.any()


@every_type
def test_production_width(emulation: Emulation, dtype: torch.dtype) -> None:
    logits, tokens = make(2, 151936, dtype, scale=2.0)
    check_statistics(emulation.statistics(place(logits), tokens), logits, tokens)


@every_type
@pytest.mark.parametrize("offset", [1, 3, 5])
@pytest.mark.parametrize("stride", [20011, 20016])
def test_misaligned_rows(emulation: Emulation, dtype: torch.dtype, offset: int, stride: int) -> None:
    logits, tokens = make(5, 20003, dtype)
    columns = 19001
    tokens[3], tokens[4] = -1, columns  # not here
    rows = place(logits, offset, stride)
    check_statistics(emulation.statistics(rows, tokens, 0.7, columns), logits, tokens, 0.7, columns)
    assert emulation.read[:, :columns].sum() == 5 * columns + (tokens[:3] < columns).sum()
    assert not emulation.read[:, columns:].any()


def test_a_row_has_the_same_bits_however_many_come_with_it(emulation: Emulation) -> None:
    logits, tokens = make(9, 50000, torch.bfloat16)
    whole = emulation.statistics(place(logits), tokens, multiprocessors=ONE)
    assert emulation.splits == 1
    for i in range(9):
        alone = emulation.statistics(place(logits[i : i + 1]), tokens[i : i + 1], multiprocessors=MANY)
        assert emulation.splits == 4 and torch.equal(alone, whole[i : i + 1])
    some = emulation.statistics(place(logits[:2]), tokens[:2], multiprocessors=ONE)
    assert emulation.splits == 2 and torch.equal(some, whole[:2])


@every_type
@pytest.mark.parametrize("width", [300, 40000])
@pytest.mark.parametrize("multiprocessors", [ONE, MANY])
def test_infinities_and_nan(emulation: Emulation, dtype: torch.dtype, width: int, multiprocessors: int) -> None:
    logits, tokens = make(8, width, dtype)
    logits[0, : width // 2] = -torch.inf
    logits[1, width // 2 :] = -torch.inf
    logits[2, :-1] = -torch.inf
    tokens[2] = width - 1
    logits[3] = -torch.inf
    logits[4, width // 3] = torch.nan
    logits[5] = torch.nan
    logits[6, 5] = torch.inf
    logits[7, :-1], logits[7, -1] = -torch.inf, torch.nan
    got = emulation.statistics(place(logits), tokens, multiprocessors=multiprocessors)
    check_statistics(got[:3], logits[:3], tokens[:3])
    assert got[3, 0] == -torch.inf and (got[3, 1:3] == 0).all()
    assert got[4:, 1:3].isnan().all()


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.7])
@pytest.mark.parametrize("scale", [0.01, 4.0, 60.0])
def test_skewed_shifted_and_ascending(emulation: Emulation, temperature: float, scale: float) -> None:
    logits, tokens = make(4, 33000, scale=scale)
    logits[0] = logits[0].sort().values  # the maximum rises with every round
    logits[1] = torch.randint(-800, 800, (33000,)) / 64 + 2.0**14  # exact in fp32
    got = emulation.statistics(place(logits), tokens, temperature)
    want = exact_statistics(logits, tokens, temperature, 33000)
    assert torch.equal(got[:, 0].double(), want[:, 0])
    # An exponent d is rounded relative to itself, and so is the log-prob.
    torch.testing.assert_close(derived(got, temperature), derived(want, temperature), rtol=5e-6, atol=5e-6)


def test_no_columns(emulation: Emulation) -> None:
    logits, tokens = make(3, 5)
    got = emulation.statistics(place(logits), tokens, columns=0)
    assert torch.equal(got, torch.tensor([-torch.inf, 0, 0, 0]).repeat(3, 1))


def gradient_case(rows: int, width: int, dtype: torch.dtype, columns: int, temperature: float
                  ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """grad, statistics, logits, tokens and the gradient in fp64."""
    logits, tokens = make(rows, width, dtype)
    tokens[1] = columns
    if columns > 1:
        logits[0, 0] = -torch.inf
    stats = exact_statistics(logits, tokens, temperature, columns)
    grad = torch.randn(rows, 4) / stats[:, 1:2].float()
    grad[:, 3] = torch.randn(rows)
    grad[-1, 1:] = 0
    want = oracle.statistics_backward(grad.double(), stats, logits.double(), tokens, temperature, columns)
    return grad, stats.float(), logits, tokens, want


@every_type
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("multiprocessors", [ONE, MANY])
def test_gradient(emulation: Emulation, dtype: torch.dtype, width: int, multiprocessors: int) -> None:
    grad, stats, logits, tokens, want = gradient_case(6, width, dtype, width, 0.8)
    rows = place(logits)
    rows.logits[-1] = torch.nan  # a masked row is not read
    got = emulation.gradient(grad, stats, rows, tokens, 0.8, multiprocessors=multiprocessors)
    torch.testing.assert_close(got.double(), want, rtol=ROUNDING[dtype], atol=1e-7)
    assert (got[-1] == 0).all() and (width == 1 or got[0, 0] == (tokens[0] == 0) * grad[0, 3].to(dtype))
    assert (emulation.written == 1).all()
    assert (emulation.read[:-1] == 1).all() and not emulation.read[-1].any()


@every_type
@pytest.mark.parametrize("offset, out_offset", [(0, 0), (1, 1), (1, 2), (0, 3)])
def test_gradient_apart_from_misaligned_logits(emulation: Emulation, dtype: torch.dtype, offset: int,
                                               out_offset: int) -> None:
    """Rows of the two that are misaligned differently go element by element."""
    columns = 8999
    grad, stats, logits, tokens, want = gradient_case(5, 9011, dtype, columns, 1.3)
    rows, out = place(logits, offset, 9013), place(torch.full_like(logits, torch.nan), out_offset)
    got = emulation.gradient(grad, stats, rows, tokens, 1.3, columns, out=out)
    torch.testing.assert_close(got.double(), want, rtol=ROUNDING[dtype], atol=1e-7)
    assert (emulation.written == 1).all() and (emulation.read[:-1, :columns] == 1).all()
    assert not emulation.read[:, columns:].any() and torch.equal(rows.logits, logits)


def test_certain_token_survives_rounding(emulation: Emulation) -> None:
    """p_y - 1 = -e^-12: formed after rounding p_y to bf16 it would be 0."""
    logits = torch.zeros(1, 64, dtype=torch.bfloat16)
    logits[0, 10] = 16
    tokens = torch.tensor([10])
    stats = exact_statistics(logits, tokens, 1.0, 64)
    grad = torch.tensor([[0, -1 / stats[0, 1].item(), 0, 1]])
    got = emulation.gradient(grad, stats.float(), place(logits), tokens)
    torch.testing.assert_close(got[0, 10].double(), 1 - 1 / stats[0, 1], rtol=2**-7, atol=0)


@every_type
@pytest.mark.parametrize("multiprocessors", [ONE, MANY])
def test_scale(emulation: Emulation, dtype: torch.dtype, multiprocessors: int) -> None:
    matrix = make(6, 40001, dtype)[0]
    factors = torch.tensor([1.0, 0.5, 0.0, -3.0, 1.0, 1e-3])
    rows = place(matrix, 1)
    emulation.scale(rows, factors, multiprocessors)
    assert torch.equal(rows.logits, (matrix.float() * factors[:, None]).to(dtype))
    changed = (factors != 1)[:, None].expand_as(matrix)
    assert torch.equal(emulation.written == 1, changed) and torch.equal(emulation.read == 1, changed)
    emulation.scale(rows, torch.tensor([2.0]).expand(6), multiprocessors)
    assert (emulation.written == 1).all()


@pytest.mark.parametrize("tile", ["128, 8, 6", "512, 2, 3"])
def test_other_tiles_are_right(tile: str, tmp_path: Path) -> None:
    """Those that benchmarks.bench_tiles tries, of few and many threads."""
    other = emulate(tmp_path / "rows.so", *with_tile(tile, tmp_path))
    for dtype, width, multiprocessors in itertools.product(DTYPES, (9, 40003), (ONE, MANY)):
        grad, stats, logits, tokens, want = gradient_case(6, width, dtype, width, 0.8)
        got = other.statistics(place(logits[1:]), tokens[1:], 0.8, multiprocessors=multiprocessors)
        check_statistics(got, logits[1:], tokens[1:], 0.8)
        got = other.gradient(grad, stats, place(logits), tokens, 0.8, multiprocessors=multiprocessors)
        torch.testing.assert_close(got.double(), want, rtol=ROUNDING[dtype], atol=1e-7)


@pytest.mark.skipif(tool("nvcc") is None, reason="no nvcc")
def test_compiles_for_hopper_without_spills(tmp_path: Path) -> None:
    """For sm_80 and sm_100 too, and so does the host side."""
    out = tmp_path / "report.json"
    subprocess.run([sys.executable, "-m", "benchmarks.static_cuda", "--out", str(out)], cwd=ROOT, check=True)
    report = json.loads(out.read_text())
    assert report["also_compiles"] == {"sm_80": "yes", "sm_100": "yes", "host": "yes"}
    kernels = {(kernel["name"], kernel["dtype"]): kernel for kernel in report["kernels"]}
    assert len(kernels) == len(report["kernels"]) == 4 * len(DTYPES)
    for (name, _), kernel in kernels.items():
        assert kernel["spill_bytes"] == 0 and kernel["stack_bytes"] == 0, kernel
        assert kernel["registers"] <= 64, f"{kernel}: fewer than 4 blocks a multiprocessor"
        if name != "merge":
            assert kernel["loads"].get("128", 0) >= 4, f"{kernel}: fewer than 4 loads of 16 bytes in flight"
        if name in ("gradient", "scale"):
            assert kernel["stores"].get("128", 0) >= 4, kernel


def test_static_report_without_nvcc(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-m", "benchmarks.static_cuda"], cwd=ROOT, capture_output=True, text=True,
                            env={**os.environ, "PATH": str(Path(sys.executable).parent), "CUDA_HOME": str(tmp_path)})
    assert result.returncode == 2 and f"no nvcc on the PATH nor in {tmp_path}/bin" in result.stderr


SETUP = """
import sys, torch, torch.utils.cpp_extension as extension
torch.version.cuda, extension.CUDA_HOME = {version!r}, {home!r}
sys.argv = ["setup.py", "--name"]
exec(open("setup.py").read())
"""


@pytest.mark.parametrize("version, home, architectures, said", [
    ("13.0", "/opt/cuda", None, "for CPU and CUDA 13.0 (9.0a)"),
    ("13.0", "/opt/cuda", "8.0;9.0", "for CPU and CUDA 13.0 (8.0;9.0)"),
    ("13.0", None, None, "for CPU only (no CUDA toolkit: set CUDA_HOME)"),
    (None, None, None, "for CPU only (torch is a CPU build)")])
def test_setup_says_whether_cuda_is_in(version: str | None, home: str | None, architectures: str | None,
                                       said: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_CUDA_ARCH_LIST"}
    if architectures:
        environment["TORCH_CUDA_ARCH_LIST"] = architectures
    result = subprocess.run([sys.executable, "-c", SETUP.format(version=version, home=home)], cwd=ROOT,
                            capture_output=True, text=True, env=environment)
    assert f"srpo_kernels._C {said}" in result.stdout, result.stderr


# ---- On a GPU ----

ops = torch.ops.srpo


def on_gpu(logits: Tensor) -> Tensor:
    """The same, with the same strides and the same misalignment."""
    base = logits if logits._base is None else logits._base
    flat = base.as_strided((base.untyped_storage().nbytes() // base.element_size(),), (1,), 0).cuda()
    return flat.as_strided(logits.shape, logits.stride(), logits.storage_offset())


@pytest.mark.gpu
@every_type
@pytest.mark.parametrize("rows, width, columns, offset, stride", [
    (1, 151936, 151936, 0, 151936), (3, 151936, 151930, 0, 152064), (700, 4099, 4099, 0, 4099), (7, 1, 1, 0, 1),
    (40, 20003, 19001, 3, 20011), (66000, 64, 64, 0, 64), (5, 9, 0, 0, 9), (2000, 33000, 33000, 1, 33000)])
def test_gpu_agrees_with_cpu(dtype: torch.dtype, rows: int, width: int, columns: int, offset: int, stride: int) -> None:
    logits, tokens = make(rows, width, dtype)
    logits[0, : width // 2] = -torch.inf
    tokens[-1] = columns
    logits = place(logits, offset, stride).logits
    x, y = on_gpu(logits), tokens.cuda()
    got = ops.logprob_statistics(x, y, 0.8, columns)
    assert torch.equal(got, ops.logprob_statistics(x, y, 0.8, columns)), "run to run"
    want = ops.logprob_statistics(logits, tokens, 0.8, columns)
    assert torch.equal(got.cpu()[:, [0, 3]], want[:, [0, 3]])
    torch.testing.assert_close(got.cpu(), want, rtol=2e-6, atol=2e-6 * max(1.0, float(want[:, 1].max())))
    if columns and rows < 700:
        alone = ops.logprob_statistics(x[:1], y[:1], 0.8, columns)
        assert torch.equal(alone, got[:1]), "a row's bits depend on the others"

    grad = torch.randn(rows, 4) / want[:, 1:2].clamp_min(1)
    grad[-1, 1:] = 0
    arguments = (grad, want, logits, tokens, 0.8, columns)
    on_device = (grad.cuda(), want.cuda(), x, y, 0.8, columns)
    want_gradient = ops.logprob_statistics_backward(*arguments)
    apart = ops.logprob_statistics_backward(*on_device)
    torch.testing.assert_close(apart.cpu().float(), want_gradient.float(), rtol=2 * ROUNDING[dtype], atol=1e-6)
    ops.logprob_statistics_backward_(*on_device)
    assert torch.equal(x, apart), "in place and apart"


@pytest.mark.gpu
def test_gpu_past_two_to_the_31_elements() -> None:
    rows, width = 16500, 131072
    if torch.cuda.mem_get_info()[0] < rows * width * 2 + 2**30:
        pytest.skip("needs 5 GB of GPU memory")
    logits = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    logits[-1] = torch.randn(width, device="cuda")
    tokens = torch.arange(rows, device="cuda")
    got = ops.logprob_statistics(logits, tokens, 1.0, width)
    assert torch.equal(got[-1:], ops.logprob_statistics(logits[-1:], tokens[-1:], 1.0, width))
    grad = torch.tensor([0.0, 0.0, 0.0, 1.0], device="cuda").repeat(rows, 1)
    ops.logprob_statistics_backward_(grad, got, logits, tokens, 1.0, width)
    assert logits[-1].nonzero().tolist() == [[rows - 1]]


@pytest.mark.gpu
def test_gpu_nan_infinities_and_scale() -> None:
    logits, tokens = make(4, 5000)
    logits[0], logits[1, 7], logits[2, 9] = -torch.inf, torch.nan, torch.inf
    got = ops.logprob_statistics(logits.cuda(), tokens.cuda(), 1.0, 5000).cpu()
    assert got[0, :3].tolist() == [-torch.inf, 0, 0] and got[1:3, 1:3].isnan().all() and got[3].isfinite().all()
    matrix, factors = make(3, 40001, torch.bfloat16)[0], torch.tensor([1.0, 0.5, 0.0])
    scaled = matrix.cuda()
    ops.scale_rows_(scaled, factors.cuda())
    assert torch.equal(scaled.cpu(), (matrix.float() * factors[:, None]).bfloat16())
    with pytest.raises(ValueError, match="must be on"):
        ops.logprob_statistics(matrix, tokens[:3].cuda(), 1.0, 5000)
