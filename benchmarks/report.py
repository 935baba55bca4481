"""The table of a case."""

from __future__ import annotations

from typing import Any

from benchmarks.inputs import Case
from benchmarks.timing import MIB


def table(case: Case, rows: list[dict[str, Any]]) -> str:
    measured = [row for row in rows if "reason" not in row]
    lines = []
    if measured:
        first = measured[0]
        rates = ", ".join(_ceiling(kind, rate) for kind, rate in first["ceilings"].items())
        lines.append(f"\n{case.label}: floor {first['floor'] * 1e3:.3f} ms ({rates}), {first['rounds']} rounds")
    unit = "TFLOP/s" if "matrix" in (measured[0]["work"] if measured else {}) else "GB/s"
    lines.append(f"{'':38}{'warm ms':>9}{'min':>9}{'cold ms':>9}{'min':>9}{unit:>9}{'x floor':>9}{'cold':>9}"
                 f"{'x eager':>9}{'cold':>9}{'peak MiB':>10}{'error':>9}{'of grad':>9}")
    for row in rows:
        name = f"  {row['implementation']:36}"
        if "reason" in row:
            lines.append(f"{name}{row['reason']}")
            continue
        warm, cold, work = row["warm"], row["cold"], row["work"]
        rate = f"{work['matrix'] / warm['median'] / 1e12:9.3f}" if "matrix" in work else (
            f"{'launch':>9}" if "launch" in work else f"{sum(work.values()) / warm['median'] / 1e9:9.1f}")
        gradient = row["gradient_error"]
        times = (warm["median"], warm["min"], cold["median"], cold["min"])
        lines.append(
            name + "".join(f"{seconds * 1e3:9.3f}" for seconds in times)
            + f"{rate}{warm['to_floor']:9.2f}{cold['to_floor']:9.2f}{_ratio(warm):>9}{_ratio(cold):>9}"
            + f"{row['peak_memory'] / MIB:10.1f}{row['value_error']:9.1e}"
            + (f"{gradient:9.1e}" if gradient is not None else f"{'':9}")
            + (f"  graph {row['graph'] * 1e3:.4f} ms" if "graph" in row else ""))
    return "\n".join(lines)


def _ratio(figures: dict[str, Any]) -> str:
    return "" if figures["to_eager"] is None else f"{figures['to_eager']:.3f}"


def _ceiling(kind: str, rate: float) -> str:
    if kind == "matrix":
        return f"matrix {rate / 1e12:.3f} TFLOP/s"
    return f"launch {1e6 / rate:.1f} us" if kind == "launch" else f"{kind} {rate / 1e9:.1f} GB/s"
