"""What nvcc makes of the CUDA kernels, without a GPU: registers, spills, shared memory, width of the accesses to global
memory, and instructions an element of the main loop (the smallest loop around the 16-byte loads, with the branches
inside it that are rarely taken, as the target's in the gradient).

    python -m benchmarks.static_cuda [--out FILE] [--tile THREADS,UNROLL,BLOCKS]

compiles csrc/cuda for sm_90a, prints a table and writes it as JSON; also says whether it compiles for sm_80 and sm_100,
and the host side. Instructions are counted only where there is a cuobjdump: CUDA's or Triton's. Exits 2 without nvcc, 1
where something does not compile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu_host import CUDA, tool

SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
ELEMENT_BYTES = {"f": 4, "NS0_8BFloat16E": 2, "NS0_4HalfE": 2}
DTYPES = {"f": "float32", "NS0_8BFloat16E": "bfloat16", "NS0_4HalfE": "float16"}
SYMBOL = re.compile(r"\d+(statistics|merge|gradient|scale)_kernelI(f|NS0_\d+\w+?E)E")  # mangled


@dataclass
class Kernel:
    name: str
    dtype: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    loads: dict[int, int]  # bits: instructions, of global memory in PTX
    stores: dict[int, int]
    instructions_per_element: float | None  # of the main loop, in SASS
    exp2_per_element: float | None


def compile_source(nvcc: str, source: Path, output: Path, *flags: str) -> str:
    """nvcc's messages. Raises CalledProcessError."""
    command = [nvcc, "-std=c++20", "-O3", *flags, "-o", str(output), str(source)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def target(arch: str) -> str:
    """Of an architecture as TORCH_CUDA_ARCH_LIST writes it."""
    number = arch.replace(".", "")
    return f"-gencode=arch=compute_{number},code=sm_{number}"


def with_tile(tile: str, folder: Path) -> list[str]:
    """Flags that put "threads, unroll, blocks" in place of csrc/cuda/shape.h's tile. (nvcc splits a -D at commas.)"""
    header = folder / "tile.h"
    header.write_text(f"#define SRPO_TILE {{{tile}}}\n")
    return ["-include", str(header)]


def by_kernel(text: str, header: str) -> dict[tuple[str, str], str]:
    """The part of `text` after each header that ends in a kernel's symbol."""
    parts = re.split(header + r"'?(\w+)", text)
    found = ((SYMBOL.search(symbol), part) for symbol, part in zip(parts[1::2], parts[2::2], strict=True))
    return {(match[1], match[2]): part for match, part in found if match}


def widths(ptx: str, kind: str) -> dict[int, int]:
    counts: dict[int, int] = {}
    for vector, bits in re.findall(rf"\s{kind}\.global(?:\.[a-z_:0-9A-Z]+)*?(?:\.v([24]))?\.[bufs](\d+)\s", ptx):
        width = int(vector or 1) * int(bits)
        counts[width] = counts.get(width, 0) + 1
    return counts


def main_loop(sass: str) -> list[str] | None:
    """The instructions of the smallest loop that loads 16 bytes at a time."""
    lines = [(int(address, 16), text) for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.+?);", sass)]
    loops = []
    for end, text in lines:
        branch = re.search(r"\bBRA\S* (?:\S+, )?0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < end:
            body = [text for address, text in lines if int(branch[1], 16) <= address <= end]
            if any(re.search(r"LDG\S*\.128", text) for text in body):
                loops.append(body)
    return min(loops, key=len, default=None)


def disassembler() -> str | None:
    found = tool("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton and triton.origin:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(bundled) if bundled.exists() else None
    return found


def analyse(nvcc: str, arch: str, folder: Path, *flags: str) -> list[Kernel]:
    cubin, ptx = folder / "kernels.cubin", folder / "kernels.ptx"
    source = SOURCES / "logprob.cu"
    usage = by_kernel(compile_source(nvcc, source, cubin, target(arch), "-cubin", "-Xptxas", "-v", *flags),
                      "Compiling entry function ")
    virtual = f"-arch=compute_{arch.replace('.', '')}"
    compile_source(nvcc, source, ptx, virtual, "-ptx", *flags)
    assembly = by_kernel(ptx.read_text(), r"\.entry ")
    cuobjdump = disassembler()
    dump = "" if cuobjdump is None else subprocess.run(
        [cuobjdump, "-sass", cubin], check=True, capture_output=True, text=True).stdout
    machine = by_kernel(dump, "Function : ")

    def number(pattern: str, text: str) -> int:
        match = re.search(pattern, text)
        return int(match[1]) if match else 0

    kernels = []
    for (name, element), text in sorted(usage.items()):
        loop = main_loop(machine.get((name, element), ""))
        loads = sum(bool(re.search(r"LDG\S*\.128", line)) for line in loop or ())
        elements = loads * 16 // ELEMENT_BYTES[element]
        kernels.append(Kernel(
            name, DTYPES[element], number(r"Used (\d+) registers", text),
            number(r"(\d+) bytes spill stores", text) + number(r"(\d+) bytes spill loads", text),
            number(r"(\d+) bytes stack frame", text), number(r"(\d+) bytes smem", text),
            widths(assembly[name, element], "ld"), widths(assembly[name, element], "st"),
            round(len(loop) / elements, 2) if loop else None,
            round(sum("MUFU.EX2" in line for line in loop) / elements, 2) if loop else None))
    return kernels


def compiles(nvcc: str, folder: Path) -> dict[str, str]:
    """Other architectures and the host side: "yes", or why not."""
    result = {}
    for arch in ("8.0", "10.0"):
        compile_source(nvcc, SOURCES / "logprob.cu", folder / "other.cubin", target(arch), "-cubin")
        result[f"sm_{arch.replace('.', '')}"] = "yes"
    try:
        from torch.utils.cpp_extension import include_paths
    except ImportError:
        result["host"] = "no torch here"
    else:
        # A CPU build of torch has c10/cuda's headers but not the one that its CMake writes.
        flags = ["-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", *(f"-I{path}" for path in include_paths())]
        compile_source(nvcc, SOURCES / "ops.cpp", folder / "ops.o", "-c", *flags)
        result["host"] = "yes"
    return result


def table(kernels: list[Kernel]) -> str:
    rows = [["kernel", "dtype", "registers", "spills", "stack", "shared", "128-bit loads", "stores", "other widths",
             "instr./element", "exp2/element"]]
    for k in kernels:
        other = sorted({*k.loads, *k.stores} - {128})
        rows.append([k.name, k.dtype, *map(str, (
            k.registers, k.spill_bytes, k.stack_bytes, k.shared_bytes, k.loads.get(128, 0), k.stores.get(128, 0),
            "/".join(map(str, other)) or "-", k.instructions_per_element or "-",
            k.exp2_per_element if k.exp2_per_element is not None else "-"))])
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)) for row in rows)
    return "\n".join(map(str.rstrip, lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument("--tile", metavar="THREADS,UNROLL,BLOCKS", help="instead of csrc/cuda/shape.h's")
    options = parser.parse_args()
    nvcc = tool("nvcc")
    if nvcc is None:
        print(f"no nvcc on the PATH nor in {CUDA}: install the CUDA toolkit to compile the kernels", file=sys.stderr)
        return 2
    version = re.search(r"V([\d.]+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    try:
        with tempfile.TemporaryDirectory() as folder:
            flags = with_tile(options.tile, Path(folder)) if options.tile else []
            kernels = analyse(nvcc, "9.0a", Path(folder), *flags)
            others = compiles(nvcc, Path(folder))
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return 1
    print(table(kernels))
    print("compiles: " + ", ".join(f"{what} {answer}" for what, answer in others.items()))
    report = {"nvcc": version[1] if version else "unknown", "target": "sm_90a", "also_compiles": others,
              "kernels": [asdict(kernel) for kernel in kernels]}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
