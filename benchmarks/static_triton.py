"""What can be known of the Triton kernels without a GPU: the code compiled for an H100, and the bytes that they move.

    python -m benchmarks.static_triton --out benchmarks/results/static-triton-sm90a.json

Triton's own compiler and ptxas say registers, spills, the width of each access and the instructions a logit; its
interpreter, with loads and stores counted, says how often each logit is read and written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from srpo_kernels import tiles, triton_advantage, triton_ops, triton_rows
from triton.backends.compiler import GPUTarget

H100 = tiles.Device(processors=132, l2_bytes=50 * 2**20, capability=(9, 0))  # SXM
WARPS, REGISTERS, SHARED = 64, 65536, 227 * 2**10  # of a multiprocessor
VOCABULARIES = (152064, 151936)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Kernel(NamedTuple):
    """A kernel over rows as the launchers in triton_ops.py call it."""

    name: str
    tile: tiles.Tile
    structure: dict[str, Any] = {}
    absent: tuple[str, ...] = ()


LOSS = {"CISPO": False, "KL": 3, "NEEDS_GRAD": True}
KERNELS = {
    "statistics": Kernel("statistics_kernel", H100.tiles.statistics),
    "statistics gradient": Kernel("statistics_gradient_kernel", H100.tiles.gradient),
    "policy loss": Kernel("policy_loss_kernel", H100.tiles.loss, LOSS),
    "policy loss, bare": Kernel("policy_loss_kernel", H100.tiles.loss, LOSS,
                                ("old_logprobs", "ref_logprobs", "rollout_logprobs")),
    "policy loss, small V": Kernel("policy_loss_kernel", H100.tiles.loss_small, LOSS),
    "policy loss, forward": Kernel("policy_loss_kernel", H100.tiles.loss_forward, {**LOSS, "NEEDS_GRAD": False}),
    "scale rows": Kernel("scale_kernel", H100.tiles.scale),
}
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
SIZES = ("width", "stride", "out_stride", "scale_stride")  # multiples of 16 with both vocabularies
TYPES = {
    **dict.fromkeys(("scale", "temperature", "clip_low", "clip_high", "dual_clip", "kl_coef", "entropy_coef",
                     "tis_cap", "eps", "eps_rest"), "fp32"),
    **dict.fromkeys(("rows", "columns", *SIZES), "i32"),
    **dict.fromkeys(("tokens", "offsets", "counts"), "*i64"),
    "valid": "*u8",
}


def compile_kernel(function: Any, matrix: str, constants: dict[str, Any], **launch: Any) -> Any:
    """Compiled for sm_90a with the arguments' types, and the divisibility by 16, that a launch would find.

    matrix: the type of what has one of logits, float32 otherwise.
    """
    signature = {name: "constexpr" if name in constants else
                 f"*{matrix}" if name in ("logits", "out", "matrix") else TYPES.get(name, "*fp32")
                 for name in function.arg_names}
    aligned = {(index,): [["tt.divisibility", 16]] for index, (name, kind) in enumerate(signature.items())
               if kind.startswith("*") or name in SIZES and name not in constants}
    source = triton.compiler.ASTSource(
        function, signature, {name: constants[name] for name in signature if name in constants}, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True, **launch})


def report(kernel: Kernel, dtype: torch.dtype) -> dict[str, Any]:
    options = kernel.tile.options(dtype)
    constants = {**kernel.structure, **dict.fromkeys(kernel.absent), **{n: options[n] for n in ("K", "LANES", "VEC")}}
    compiled = compile_kernel(getattr(triton_rows, kernel.name), NAMES[dtype], constants,
                              num_warps=options["num_warps"], maxnreg=options["maxnreg"])
    code = _code(compiled)
    resources = _resources(compiled, code)
    threads = 32 * kernel.tile.warps
    registers = -(-resources["registers"] // 8) * 8  # allocated in units of 8 a thread
    resident = min(REGISTERS // (registers * threads), WARPS // kernel.tile.warps,
                   SHARED // max(resources["shared_bytes"], 1))
    elements = kernel.tile.k * 16 // dtype.itemsize  # a tile's, of one thread
    return {
        **resources, "warps": kernel.tile.warps, "tile": [kernel.tile.k, threads, 16 // dtype.itemsize],
        "programs": kernel.tile.programs, "resident_programs": resident,
        "occupancy": resident * kernel.tile.warps / WARPS,
        "accesses": accesses(compiled.asm["ptx"]),
        "l2_policies": sorted(set(re.findall(r"createpolicy\.fractional\.(L2::\w+)", compiled.asm["ptx"]))),
        "instructions_per_logit": [round(count / elements, 1) for count in _loops(code)],
    }


def report_advantage() -> dict[str, Any]:
    threads = H100.tiles.advantage.threads
    compiled = compile_kernel(triton_advantage.group_advantage_kernel, "fp32",
                              {"STD": True, "UNBIASED": 0, "BLOCK": threads}, num_warps=threads // 32)
    return {**_resources(compiled, _code(compiled)), "warps": threads // 32}


def accesses(ptx: str) -> dict[str, int]:
    """Global loads and stores in the text by kind, width in bytes and cache hint."""
    kinds: Counter[str] = Counter()
    for kind, modifiers, vector, bits in re.findall(
            r"\b(ld|st)\.global((?:\.[A-Za-z0-9_:]+?)*?)(?:\.v(\d))?\.[a-z](\d+)\b", ptx):
        hint = modifiers.lstrip(".") or "default"
        kinds[f"{kind} {int(vector or 1) * int(bits) // 8} bytes, {hint}"] += 1
    return dict(sorted(kinds.items()))


def _disassemble(cubin: bytes, option: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([triton.knobs.nvidia.cuobjdump.path, option, str(path)], check=True, capture_output=True,
                              text=True).stdout


def _code(compiled: Any) -> list[tuple[int, str]]:
    """Address and text of each instruction."""
    listing = _disassemble(compiled.asm["cubin"], "-sass")
    return [(int(address, 16), text.strip())
            for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", listing)]


def _resources(compiled: Any, code: list[tuple[int, str]]) -> dict[str, int]:
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", _disassemble(compiled.asm["cubin"], "-res-usage")))
    return {"registers": int(usage["REG"]), "local_bytes": int(usage["STACK"]) + int(usage["LOCAL"]),
            "spills": sum(bool(re.search(r"\b(LDL|STL)\b", text)) for _, text in code),
            "shared_bytes": compiled.metadata.shared}


def _loops(code: list[tuple[int, str]]) -> list[int]:
    """Instructions of each innermost loop with 16-byte loads: the sweeps over full tiles."""
    found = []
    inner = -1  # where the last loop ended: one that holds another is not innermost
    for address, line in code:
        jump = re.search(r"\bBRA (?:`\()?(0x[0-9a-f]+)", line)
        if jump is None or not inner < int(jump.group(1), 16) < address:
            continue
        body = [text for at, text in code if int(jump.group(1), 16) <= at <= address]
        if any(re.search(r"\bLDG\S*\.128", text) for text in body):
            found.append(len(body))
            inner = address
    return found


def traffic(dtypes: list[str]) -> list[dict[str, Any]]:
    """Reads and writes a logit, counted by the interpreter in a process of its own, at the largest vocabulary."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.static_triton", "--count", "--dtypes", *dtypes]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


def _count(width: int, dtypes: list[str], rows: int = 2) -> list[dict[str, Any]]:
    from triton.runtime.interpreter import InterpreterBuilder

    spans: dict[str, tuple[int, int]] = {}
    counts: Counter[str] = Counter()

    def counted(method: Any, kind: str) -> Any:
        def run(self: Any, pointers: Any, *rest: Any, **named: Any) -> Any:
            mask = rest[0 if kind == "read" else 1].data
            for name, (begin, end) in spans.items():
                counts[f"{name} {kind}"] += int(((pointers.data >= begin) & (pointers.data < end) & mask).sum())
            return method(self, pointers, *rest, **named)
        return run

    for method, kind in (("create_masked_load", "read"), ("create_masked_store", "written")):
        setattr(InterpreterBuilder, method, counted(getattr(InterpreterBuilder, method), kind))

    def watch(**tensors: torch.Tensor) -> None:
        counts.clear()
        spans.clear()
        spans.update({name: (t.data_ptr(), t.data_ptr() + t.nbytes) for name, t in tensors.items()})

    results = []

    def record(what: str, dtype: str) -> None:
        named = {f"{name}_{kind}": round(counts[f"{name} {kind}"] / (rows * width), 5)
                 for name in spans for kind in ("read", "written")}
        results.append({"kernel": what, "dtype": dtype, "vocabulary": width, **named})

    for name in dtypes:
        logits = torch.randn(rows, width).to(DTYPES[name])
        tokens = torch.randint(0, width, (rows,))
        ones = torch.ones(rows)
        watch(logits=logits)
        statistics = triton_ops.logprob_statistics(logits, tokens, 1.0, width)
        record("statistics", name)
        for what, grad in (("statistics gradient, in place", torch.ones(rows, 4)),
                           ("statistics gradient of zero, in place", torch.zeros(rows, 4))):
            overwritten = logits.clone()
            watch(logits=overwritten)
            triton_ops.logprob_statistics_backward_(grad, statistics, overwritten, tokens, 1.0, width)
            record(what, name)
        options = (None, None, None, 1.0, width, 0.2, 0.28, float("inf"), False, 3, 0.0, 0.0, 0.0)
        for what, weights, needs_grad in (("policy loss, in place", ones, True), ("policy loss, forward", ones, False),
                                          ("policy loss, masked, in place", 0 * ones, True)):
            overwritten = logits.clone()
            watch(logits=overwritten)
            if needs_grad:
                triton_ops.policy_loss_rows_(overwritten, tokens, ones, weights, *options)
            else:
                triton_ops.policy_loss_rows(overwritten, tokens, ones, weights, *options, False)
            record(what, name)
        for what, scale in (("scale rows", 2 * ones), ("scale rows by 1", ones)):
            overwritten = logits.clone()
            watch(logits=overwritten)
            triton_ops.scale_rows_(overwritten, scale)
            record(what, name)
    return results


def live_rows() -> list[dict[str, Any]]:
    """Rows that the policy loss holds between its two sweeps on an H100, against the L2 cache that is to keep them."""
    results = []
    for vocabulary in (*VOCABULARIES, 128256, 49152):
        for name, dtype in DTYPES.items():
            row = vocabulary * dtype.itemsize
            live = H100.loss_tile(row).programs * H100.processors
            results.append({"vocabulary": vocabulary, "dtype": name, "rows": live,
                            "mib": round(live * row / 2**20, 1), "l2_share": round(live * row / H100.l2_bytes, 2)})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write JSON here as well")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        print(json.dumps(_count(VOCABULARIES[0], arguments.dtypes)))
        return
    kernels = [{"kernel": name, "dtype": dtype, **report(kernel, DTYPES[dtype])}
               for name, kernel in KERNELS.items() for dtype in arguments.dtypes]
    results = {"target": "sm_90a", "triton": triton.__version__, "vocabularies": VOCABULARIES, "kernels": kernels,
               "group_advantage": report_advantage(), "traffic": traffic(arguments.dtypes), "live_rows": live_rows()}
    _print(results)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def _print(results: dict[str, Any]) -> None:
    print(f"Compiled for {results['target']} by Triton {results['triton']}")
    print(f"{'kernel':22} dtype  regs spills shared warps programs resident occupancy  instructions a logit")
    for k in results["kernels"]:
        print(f"{k['kernel']:22} {k['dtype']:5} {k['registers']:5} {k['spills']:6} {k['shared_bytes']:6} "
              f"{k['warps']:5} {k['programs']:8} {k['resident_programs']:8} {k['occupancy']:8.0%}   "
              f"{k['instructions_per_logit']}")
    k = results["group_advantage"]
    print(f"{'group advantage':28} {k['registers']:5} {k['spills']:6} {k['shared_bytes']:6} {k['warps']:5}")
    for k in results["kernels"]:
        if k["dtype"] == "bf16":
            print(f"{k['kernel']}: " + "; ".join(f"{count} x {kind}" for kind, count in k["accesses"].items()))
    print(f"{'reads and writes a logit':38} dtype     read  written")
    for t in results["traffic"]:
        print(f"{t['kernel']:38} {t['dtype']:5} {t['logits_read']:8.5f} {t['logits_written']:8.5f}")
    print("Policy loss: rows live between the sweeps, of an H100's L2 cache")
    for live in results["live_rows"]:
        print(f"{live['vocabulary']:7} {live['dtype']:5} {live['rows']:4} rows {live['mib']:6.1f} MiB "
              f"{live['l2_share']:5.0%}")


if __name__ == "__main__":
    main()
