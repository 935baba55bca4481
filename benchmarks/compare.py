"""Compare two results of the benchmarks: python -m benchmarks.compare baseline.json new.json --tolerance 0.05

Compares ratios that were measured within a run, never raw times: of srpo_kernels to the floor and to torch eager, and
whatever other benchmarks give as `ratios` (the smaller the better).
Exits with 1 for a ratio that grew beyond the tolerance or a case that is missing, with 2 for results that cannot be
compared.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from srpo.files import write_text

OURS = ("srpo_kernels", "srpo")
RATIOS = tuple((mode, to) for mode in ("warm", "cold") for to in ("to_floor", "to_eager"))
SAME = ("device", "threads", "quick")


class Incomparable(Exception):
    pass


def read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise Incomparable(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Incomparable(f"{path} is not JSON: {error}") from error
    missing = {"rows", *SAME} - set(document if isinstance(document, dict) else ())
    if missing:
        raise Incomparable(f"{path} is not a result of the benchmarks: it has no {', '.join(sorted(missing))}")
    return document


def write(document: dict[str, Any], path: Path) -> None:
    """A result that `compare` reads: `rows` and the settings that must be the same."""
    assert document.keys() >= {"rows", *SAME}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document, indent=1) + "\n")


def ratios(document: dict[str, Any], pattern: str) -> dict[str, dict[str, float]]:
    """case -> "warm to_floor" -> ratio"""
    return {row["case"]: row["ratios"] if "ratios" in row else
            {f"{mode} {to}": row[mode][to] for mode, to in RATIOS if row[mode][to] is not None}
            for row in document["rows"] if row["implementation"] in OURS and re.search(pattern, row["case"])}


def compare(baseline: dict[str, Any], new: dict[str, Any], tolerance: float, pattern: str = "") -> tuple[str, bool]:
    """A table, and whether nothing regressed. Raises Incomparable for different devices or settings."""
    for key in (*SAME, "dtype"):  # the model's, of the trainer's parts; kernels have it in their cases
        old, now = baseline.get(key), new.get(key)
        if old != now:
            raise Incomparable(f"{key} differs: {old!r} in the baseline, {now!r} in the new result; measure both alike")
    before, after = ratios(baseline, pattern), ratios(new, pattern)
    if not before:
        raise Incomparable(f"the baseline has no case of {OURS[0]} or {OURS[1]} that matches {pattern!r}")
    columns = list(dict.fromkeys(column for case in before.values() for column in case))
    width = max(len(case) for case in before | after) + 2
    lines = [f"{'':{width}}" + "".join(f"{column:>24}" for column in columns)]
    good = True
    for case, old in before.items():
        line = f"{case:{width}}"
        if case not in after:
            lines.append(f"{line}MISSING")
            good = False
            continue
        for column in columns:
            cell, fine = _cell(old.get(column), after[case].get(column), tolerance)
            line += f"{cell:>24}"
            good = good and fine
        lines.append(line)
    lines += [f"{case:{width}}new" for case in after if case not in before]
    lines.append(f"no regression beyond {tolerance:.0%}" if good else
                 f"REGRESSION: marked ! where a ratio grew by more than {tolerance:.0%}, or a case or ratio is missing")
    return "\n".join(lines), good


def _cell(old: float | None, new: float | None, tolerance: float) -> tuple[str, bool]:
    if old is None:
        return "", True
    if new is None:
        return "missing !", False
    fine = new <= old * (1 + tolerance)  # False for a NaN
    return f"{old:.3g} -> {new:.3g} {new / old - 1:+.0%}{'' if fine else ' !'}", fine


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.05, help="how much a ratio may grow (%(default)s)")
    parser.add_argument("--filter", default="", metavar="REGEX", help="only cases that match, in both")
    options = parser.parse_args(arguments)
    try:
        text, good = compare(read(options.baseline), read(options.new), options.tolerance, options.filter)
    except Incomparable as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
