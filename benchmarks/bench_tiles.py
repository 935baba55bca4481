"""Which values of srpo_kernels.tiles, and which tile of csrc/cuda/shape.h, are fastest on this GPU.

    python -m benchmarks.bench_tiles [--filter REGEX] [--out FILE.json]

For each field of tiles.Tiles a few candidates are timed beside the value in the table, in rounds of all of them and of
the floor. A candidate's results have to be those of the table's value but for the order of sums; one that spills, or
whose programs cannot all be resident, is left out. The spread is what two timings of the table's value differ by, in
nine rounds of ten. Where a candidate is ahead by more in a case of a field, and behind in none, the line for the table
is printed; docs/performance.md says when to take it.

--compile says what the compiler makes of every candidate for sm_90a, without a GPU. Under TRITON_INTERPRET=1 everything
runs on a CPU, with small shapes, and measures nothing.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from srpo_kernels import tiles, triton_advantage, triton_ops, triton_rows
from srpo_kernels.tiles import Share, Tile
from torch import Tensor
from triton.runtime.errors import OutOfResources

from benchmarks import compare, cuda_tile, static_triton, timing
from benchmarks.gpu_host import commit, tool
from benchmarks.inputs import DTYPES, GROUP
from benchmarks.tile_fields import CUDA, FIELDS, Problem, Value, loss

ROWS, ROUNDS = 8192, 50
TABLE, AGAIN = "srpo", "srpo again"


class Case(NamedTuple):
    field: str
    dtype: str
    rows: int
    vocab: int

    @property
    def label(self) -> str:
        return f"tiles {self.field} {self.dtype} {self.rows}x{self.vocab}"

    def work(self) -> dict[str, float]:
        """Bytes, or launches, by kind of ceiling."""
        read = self.rows * self.vocab * DTYPES[self.dtype].itemsize
        return {kind: {"read": read, "copy": 2 * read, "launch": 1}[kind] for kind in FIELDS[self.field].floor}


def cases(device: torch.device, quick: bool) -> list[Case]:
    found = []
    here = tiles.device(device)
    for name, field in FIELDS.items():
        if name == CUDA and (device.type == "cpu" or tool("nvcc") is None):
            continue
        for dtype, vocab in field.cases:
            row = here.tiles.loss_small.programs * here.processors * DTYPES[dtype].itemsize
            widths = [vocab] if vocab else [
                int(share * here.l2_bytes / row) // 16 * 16
                for share in sorted(share.of_l2 for share in (here.tiles.l2_share, *field.candidates))]
            for width in widths:
                rows = (2 * GROUP if name == "advantage" else 1) if quick else ROWS
                found.append(Case(name, dtype, rows, min(width, 17000) if quick else width))
    return list(dict.fromkeys(found))


def name_of(value: Value) -> str:
    return "x".join(f"{part:g}" for part in value[:-1])


def current(device: torch.device, field: str) -> Any:
    return cuda_tile.in_shape_h() if field == CUDA else getattr(tiles.device(device).tiles, field)


@contextmanager
def chosen(x: Problem, field: str, value: Any) -> Iterator[None]:
    """This value in the table; and of the policy loss's tiles the one that is asked for."""
    here = tiles.device(x.logits.device)
    if field == CUDA:
        x.library = cuda_tile.build(value, ".".join(map(str, here.capability)))
        yield
        return
    share = {"loss": Share(0.0, ""), "loss_small": Share(float("inf"), "")}.get(field, here.tiles.l2_share)
    with mock.patch.dict(tiles.TABLE, {here.capability: here.tiles._replace(**{"l2_share": share, field: value})}):
        yield


class Compiled(NamedTuple):
    registers: int
    spills: int


def launch(x: Problem, field: str, value: Any) -> tuple[tuple[Tensor, ...], Compiled | None]:
    """Results, and what the compiler made of the kernel; the interpreter says nothing of that."""
    function = FIELDS[field].function
    with chosen(x, field, value):
        if field == CUDA:
            return function(x), Compiled(x.library.registers, x.library.spills)
        if triton_ops.INTERPRETED:
            return function(x), None
        kernel = getattr(triton_advantage if field == "advantage" else triton_rows, FIELDS[field].kernel)
        results, compiled = launched_by(kernel, lambda: function(x))
        return results, Compiled(compiled.n_regs, compiled.n_spills)


def launched_by(kernel: Any, call: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call returns, and the kernel as it was compiled for it."""
    launched: list[Any] = []
    run = kernel.run

    def keep(*positional: Any, **named: Any) -> Any:
        launched.append(run(*positional, **named))
        return launched[-1]

    with mock.patch.object(kernel, "run", keep):
        result = call()
    return result, launched[-1]


def unfit(device: torch.device, value: Value, registers: int, spills: int) -> str | None:
    """Why a candidate is out of the question."""
    if spills:
        return "spills"
    if isinstance(value, Tile):
        properties = torch.cuda.get_device_properties(device)
        threads = 32 * value.warps * value.programs
        if threads * (-(-registers // 8) * 8) > static_triton.REGISTERS:
            return f"{registers} registers do not fit {value.programs} times"
        if threads > properties.max_threads_per_multi_processor:
            return f"{threads} threads do not fit"
    return None


def difference(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    """Largest error over what the order of sums may change: of values, and of a matrix's rows by their largest entry,
    where rounding to the matrix's type comes on top. At most 1 for a right candidate."""
    worst = 0.0
    for ours, theirs in zip(got, want, strict=True):
        for start in range(0, len(theirs), 256):
            a, b = (x[start : start + 256].float() for x in (ours, theirs))
            if ours.dim() == 1 or ours.shape[1] <= 5:
                errors = (a - b).abs() / (1e-5 + 1e-5 * b.abs())
            else:
                errors = (a - b).abs() / (1e-9 + max(1e-5, torch.finfo(ours.dtype).eps) * b.abs().amax(1, keepdim=True))
            found = float(errors.max())
            worst = found if found != found else max(worst, found)  # a NaN stays
    return worst


def tried(x: Problem, case: Case, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A row for each value after one launch, with a "reason" where it is left out. Raises AssertionError for one whose
    results are not the first one's."""
    device, rows = x.logits.device, {}
    want: tuple[Tensor, ...] = ()
    for name, value in values.items():
        row: dict[str, Any] = {"case": case.label, "implementation": name, "value": value._asdict()}
        rows[name] = row
        x.restore()
        try:
            got, compiled = launch(x, case.field, value)
        except OutOfResources as error:
            row["reason"] = str(error)
            continue
        if compiled is not None:
            row |= compiled._asdict()
            reason = unfit(device, value, *compiled)
            if reason and value is not values[TABLE]:
                row["reason"] = reason
        if not want:
            want = tuple(result.clone() for result in got)
        elif (wrong := difference(got, want)) > 1 or wrong != wrong:
            raise AssertionError(f"{case.label}: {name} is {wrong:.3g} times as far off the table's value as it may be")
        del got
    return rows


def measure(case: Case, clock: timing.Clock, stream: int, rounds: int) -> list[dict[str, Any]]:
    """A row for the table's value, first, and one for each candidate; one that is left out has a "reason"."""
    field, work = FIELDS[case.field], case.work()
    x = Problem(case.dtype, case.rows, case.vocab, clock.device)
    now = current(clock.device, case.field)
    values = {TABLE: now, AGAIN: now} | {
        name_of(value): value for value in field.candidates if value[:-1] != now[:-1]}
    rows = tried(x, case, values)

    ceilings = timing.Ceilings(clock, set(work), stream)
    names = [name for name in rows if "reason" not in rows[name]]
    samples: list[dict[str, float]] = []
    for index in range(rounds):
        sample = {"floor": sum(work[kind] / rate for kind, rate in ceilings.sample().items())}
        first = index % len(names)
        for name in names[first:] + names[:first]:
            x.restore()
            with chosen(x, case.field, values[name]):
                sample[name] = clock(lambda: field.function(x))
        samples.append(sample)

    spread = quantiles([abs(sample[AGAIN] / sample[TABLE] - 1) for sample in samples], n=10, method="inclusive")[-1]
    for name in names:
        ratios = {"to_floor": median(sample[name] / sample["floor"] for sample in samples)}
        if name != TABLE:
            ratios["to_table"] = median(sample[name] / sample[TABLE] for sample in samples)
        rows[name] |= {"seconds": median(sample[name] for sample in samples), "ratios": ratios, "spread": spread}
    found = [row for name, row in rows.items() if name != AGAIN]
    rows[TABLE]["ratios"]["to_best"] = 1 / min([1.0, *(
        row["ratios"]["to_table"] for row in found[1:] if "ratios" in row)])
    return found


def table(rows: list[dict[str, Any]]) -> str:
    ours = rows[0]
    floor = ours["seconds"] / ours["ratios"]["to_floor"]
    lines = [f"\n{ours['case']}: floor {floor * 1e3:.3f} ms, spread {ours['spread']:.2%}",
             f"{'':12}{'registers':>10}{'spills':>8}{'ms':>9}{'x floor':>9}{'x table':>9}"]
    for row in rows:
        name = "x".join(f"{part:g}" for part in list(row["value"].values())[:-1])
        line = f"  {name:10}{row.get('registers', ''):>10}{row.get('spills', ''):>8}"
        ratios = row.get("ratios", {})
        lines.append(line + (f"  {row['reason']}" if "reason" in row else
                             f"{row['seconds'] * 1e3:9.3f}{ratios['to_floor']:9.3f}{ratios.get('to_table', 1.0):9.3f}")
                     + ("  in the table" if row is ours else ""))
    return "\n".join(lines)


def better(field: str, by_case: list[list[dict[str, Any]]]) -> Value | None:
    """The candidate that is ahead of the table's value in a case of this field, behind in none, and fastest over all
    of them. By more than the spread, which two timings of one value differ by."""
    best, least = None, 1.0
    for value in FIELDS[field].candidates:
        rows = [row for rows in by_case for row in rows if row["implementation"] == name_of(value) and "ratios" in row]
        ratios = [row["ratios"]["to_table"] for row in rows]
        ahead = any(ratio < 1 - row["spread"] for ratio, row in zip(ratios, rows, strict=True))
        behind = any(ratio > 1 + row["spread"] for ratio, row in zip(ratios, rows, strict=True))
        if len(rows) == len(by_case) and ahead and not behind and mean(ratios) < least:
            best, least = value, mean(ratios)
    return best


def line_for(field: str, value: Value) -> str:
    if field == CUDA:
        return f"#define SRPO_TILE {{{', '.join(map(str, value[:-1]))}}}"
    of = value._replace(chosen_by=f"{date.today()} tiles: {field}")
    return f"{field}={type(of).__name__}({', '.join(f'{name}={part!r}' for name, part in of._asdict().items())}),"


def report_compiled() -> None:
    structures = {"loss_forward": {**static_triton.LOSS, "NEEDS_GRAD": False}}
    for name, field in FIELDS.items():
        for value in (current(torch.device("cpu"), name), *field.candidates):
            if isinstance(value, Tile):
                structure = structures.get(name, static_triton.LOSS if field.function is loss else {})
                for dtype in ("bf16", "fp32"):
                    of = static_triton.report(static_triton.Kernel(field.kernel, value, structure), DTYPES[dtype])
                    print(f"{name:13}{name_of(value):8}{dtype}  {of['registers']:4} registers{of['spills']:5} spills  "
                          f"resident {of['resident_programs']:2}  instructions a logit {of['instructions_per_logit']}",
                          flush=True)


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--filter", default="", metavar="REGEX", help="only cases whose label matches")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--compile", action="store_true", help="compile for sm_90a, and measure nothing")
    options = parser.parse_args(arguments)
    if options.compile:
        report_compiled()
        return None
    if options.device == "cpu" and not triton_ops.INTERPRETED:
        parser.error("the Triton kernels need a GPU, or TRITON_INTERPRET=1 to be run on a CPU")
    device = torch.zeros(0, device=options.device).device
    quick = device.type == "cpu"
    stream = timing.QUICK_STREAM if quick else timing.STREAM["cuda"]
    clock = timing.Clock(device, stream)
    print(f"{timing.device_name(device)}; torch {torch.__version__}, triton {triton.__version__}; "
          f"{tiles.device(device)}")
    document: dict[str, Any] = {
        "device": timing.device_name(device), "threads": torch.get_num_threads(), "quick": quick,
        "versions": {"torch": torch.__version__, "triton": triton.__version__}, "commit": commit(),
        "clocks": timing.clocks(device), "lines": [], "rows": []}
    by_field: dict[str, list[list[dict[str, Any]]]] = {}
    for case in cases(device, quick):
        if re.search(options.filter, case.label):
            rows = measure(case, clock, stream, 2 if quick else ROUNDS)
            print(table(rows), flush=True)
            by_field.setdefault(case.field, []).append(rows)
            document["rows"] += rows
            write(document, options.out)
    if not quick:
        document["lines"] = [line_for(field, value) for field, by_case in by_field.items()
                             if (value := better(field, by_case)) is not None]
        write(document, options.out)
    print("\nahead of the table: " + "; ".join(document["lines"]) if document["lines"] else
          "\nnothing is ahead of the table")
    return document


def write(document: dict[str, Any], out: Path | None) -> None:
    """After each case: what was measured outlives what comes next."""
    if out is not None:
        compare.write(document, out)


if __name__ == "__main__":
    main()
