"""Write a wheel again with nothing but what one GPU architecture runs:

    slim_wheel.py WHEEL --arch 90 --out DIR [--drop PATTERN]...

Code for other architectures is taken out of the fat binaries of shared libraries, wherever there is machine code for
this one, and zeros take its place: a library keeps its size and layout, and the compressed wheel, which is what
travels, shrinks. nvprune cannot do that: it takes objects and static libraries only. For 9.0 FlashAttention-2 is left
out of vLLM where FlashAttention-3 is there: vLLM imports each if it can, and takes 3 on such a GPU. --drop leaves out
files by name, 'vllm/_moe_C*' for one; nobody looks whether anything still imports them.

A changed wheel gets a build tag (NAME-VERSION-1sm90-...), a RECORD of what it holds now, and no signature. One in which
nothing is to be changed is copied. Where bytes look like a fat binary and are not one, they are left as they are.
"""

from __future__ import annotations

import argparse
import base64
import csv
import fnmatch
import hashlib
import io
import shutil
import struct
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

MAGIC = struct.pack("<I", 0xBA55ED50)
HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes that follow
ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, bytes of this header, bytes of code; at 28 the architecture
PTX, MACHINE_CODE = 1, 2
UNUSED = {90: ("vllm/vllm_flash_attn/_vllm_fa2_C", "vllm/vllm_flash_attn/_vllm_fa3_C")}
"""By architecture: what is left out, and what must be there in its place."""


class Entry(NamedTuple):
    """Code for one architecture, with its header."""

    kind: int
    architecture: int
    begin: int
    end: int


def fat_binaries(data: bytes) -> Iterator[tuple[int, list[Entry]]]:
    """Where each one begins, and what is in it."""
    at = data.find(MAGIC)
    while at >= 0:
        if entries := _entries(data, at):
            yield at, entries
        at = data.find(MAGIC, at + len(MAGIC))


def _entries(data: bytes, at: int) -> list[Entry]:
    """None where these bytes are no fat binary."""
    if at + HEADER.size > len(data):
        return []
    _, version, header, size = HEADER.unpack_from(data, at)
    end = at + header + size
    if version != 1 or header != HEADER.size or end > len(data):
        return []
    found, at = [], at + header
    while at < end:
        if at + ENTRY.size > end:
            return []
        kind, _, header, size, architecture = ENTRY.unpack_from(data, at)
        if kind not in (PTX, MACHINE_CODE) or header < ENTRY.size or at + header + size > end:
            return []
        found.append(Entry(kind, architecture, at, at + header + size))
        at += header + size
    return found


def slim_library(data: bytes, arch: int) -> bytes:
    """The same with other architectures' code taken out, where there is machine code for this one."""
    slim = bytearray(data)
    for at, entries in fat_binaries(data):
        wanted = [entry for entry in entries if (entry.kind, entry.architecture) == (MACHINE_CODE, arch)]
        if wanted and len(wanted) < len(entries):
            kept = b"".join(data[entry.begin:entry.end] for entry in wanted)
            slim[entries[0].begin:entries[-1].end] = kept.ljust(entries[-1].end - entries[0].begin, b"\0")
            HEADER.pack_into(slim, at, *HEADER.unpack_from(data, at)[:3], len(kept))
    return bytes(slim)


def slim_wheel(wheel: Path, arch: int, out: Path, drop: Sequence[str] = ()) -> Path:
    """Path of the new wheel in `out`. `drop`: patterns of names, in which * stands for / too."""
    parts = wheel.name.removesuffix(".whl").split("-")
    target = out / "-".join([*parts[:2], f"1sm{arch}", *parts[-3:]])
    target = target.with_name(target.name + ".whl")
    part = target.with_suffix(".part")
    changed = False
    record: list[tuple[str, str, int | str]] = []
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        info = next(name.rsplit("/", 1)[0] for name in names
                    if name.endswith(".dist-info/RECORD") and name.count("/") == 1)
        dropped = _unused(names, arch).union(*(fnmatch.filter(names, pattern) for pattern in drop))
        for member in old.infolist():
            name = member.filename
            if name in dropped or name in (f"{info}/RECORD", f"{info}/RECORD.jws", f"{info}/RECORD.p7s"):
                changed = changed or name in dropped
                continue
            data = old.read(member)
            if ".so" in Path(name).name:
                slim = slim_library(data, arch)
                changed = changed or slim != data
                data = slim
            elif name == f"{info}/WHEEL":
                data = data.rstrip(b"\n") + f"\nBuild: 1sm{arch}\n".encode()
            member.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(member, data)
            if not member.is_dir():
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                record.append((name, f"sha256={digest}", len(data)))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*record, (f"{info}/RECORD", "", "")])
        new.writestr(old.getinfo(f"{info}/RECORD"), text.getvalue())  # with its date: the same wheel, the same bytes
    if not changed:
        part.unlink()
        return Path(shutil.copy2(wheel, out / wheel.name))
    part.rename(target)
    return target


def _unused(names: list[str], arch: int) -> set[str]:
    unused, instead = UNUSED.get(arch, (None, None))
    if unused is None or not any(name.startswith(instead) for name in names):
        return set()
    return {name for name in names if name.startswith(unused)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--arch", type=int, required=True, help="90 for an H100")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drop", action="append", default=[], metavar="PATTERN", help="leave out files of such names")
    options = parser.parse_args()
    new = slim_wheel(options.wheel, options.arch, options.out, options.drop)
    before, after = options.wheel.stat().st_size / 2**20, new.stat().st_size / 2**20
    if new.name != options.wheel.name:
        print(f"{new.name}: {before:.1f} -> {after:.1f} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
