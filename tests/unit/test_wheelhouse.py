"""launch/wheelhouse.sh and its installer, with wheels made here and pip kept from any index."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
FA2, FA3 = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"

sys.path.insert(0, str(LAUNCH))
import slim_wheel  # noqa: E402


def wheel(folder: Path, name: str, version: str, files: dict[str, bytes], *requires: str) -> Path:
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {each}\n" for each in requires)
    tag = "py3-none-manylinux_2_17_x86_64"
    files = files | {f"{info}/METADATA": metadata.encode(),
                     f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()}
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/RECORD", "".join(f"{member},,\n" for member in [*files, f"{info}/RECORD"]))
    return path


def fat_binary(*codes: tuple[int, int, bytes]) -> bytes:
    """(kind, architecture, code): as fatbinary writes it."""
    entries = b"".join(struct.pack("<HHIQ12xI32x", kind, 0x101, 64, len(code), architecture) + code
                       for kind, architecture, code in codes)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


OLD, NEW, PTX = os.urandom(30000), os.urandom(20000), os.urandom(1000)
LIBRARY = (b"\x7fELF before" + fat_binary((2, 80, OLD), (2, 90, NEW), (1, 120, PTX)) + b"between"
           + fat_binary((2, 80, b"alone"), (1, 80, b"ptx")) + struct.pack("<I", 0xBA55ED50) + b"not one")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    wheel(folder, "example_top", "1.0", {"example_top.py": b"value = 1\n"}, "example-big==2.0", "example-there",
          "torch>=2.11")
    wheel(folder, "example_big", "2.0",
          {"example_big.so": LIBRARY, "pages.bin": os.urandom(120_000), FA2: b"2", FA3: b"3"})
    wheel(folder, "example_there", "3.0", {"example_there.py": b""})
    wheel(folder, "torch", "2.11.0", {"torch.py": b""}, "example-cuda[blas]==1.0", "example-loose>=1")
    wheel(folder, "example_cuda", "1.0", {}, 'example-blas==1.5; extra == "blas"')
    wheel(folder, "example_blas", "1.5", {"blas.so": b""})
    wheel(folder, "example_loose", "1.1", {"loose.py": b""})
    wheel(folder, "torch", "2.13.0", {"torch.py": b""})
    return folder


def collect(index: Path, out: Path, *options: str, requirement: str = "example-top",
            host: str = "") -> subprocess.CompletedProcess:
    (out.parent / "requirements.txt").write_text(requirement + "\n")
    (out.parent / "host.txt").write_text(host)
    return subprocess.run(
        ["bash", str(LAUNCH / "wheelhouse.sh"), str(out), "--python", VERSION, "--requirements",
         str(out.parent / "requirements.txt"), "--have", str(out.parent / "host.txt"), *options], text=True,
        capture_output=True, env=os.environ | {"PYTHON": sys.executable, "PIP_NO_INDEX": "1",
                                               "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull})


@pytest.fixture(scope="module")
def collected(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collected") / "out"
    run = collect(index, out, "--piece-size", "50K", "--arch", "90",
                  host="torch==2.11.0+cu130\nExample_There==3.0\nmine @ file:///x\n")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("3 wheels, ") and "example_big-2.0-1sm90-" in run.stderr
    return out / "send"


def install(pieces: Path, target: Path) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", str(pieces / "install.sh"), "--target", str(target)], text=True, capture_output=True,
                          env=os.environ | {"PYTHON": sys.executable, "PIP_CONFIG_FILE": os.devnull})


def test_what_the_host_lacks_arrives_in_pieces(collected: Path, tmp_path: Path):
    pieces = sorted(collected.glob("piece-*"))
    assert len(pieces) > 2 and all(piece.stat().st_size <= 50 * 1024 for piece in pieces)
    run = install(collected, tmp_path / "site")
    assert run.returncode == 0, run.stderr
    installed = {path.name for path in (tmp_path / "site").iterdir()}
    assert {"example_top.py", "example_big.so", "pages.bin", "loose.py"} <= installed
    assert not installed & {"torch.py", "example_there.py", "blas.so"}, "what the host has, or came with its torch"


def test_what_the_files_name_and_no_more(index: Path, tmp_path: Path):
    run = collect(index, tmp_path / "out", "--no-deps", "--arch", "90", "--drop", "*.bin", "--drop", "no/such/*",
                  requirement="example-big\nexample-top")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("2 wheels, ")
    assert install(tmp_path / "out" / "send", tmp_path / "site").returncode == 0
    installed = {path.name for path in (tmp_path / "site").iterdir()}
    assert {"example_top.py", "example_big.so"} <= installed and not installed & {"pages.bin", "torch.py"}


def test_damaged_and_missing_pieces_are_named_and_nothing_is_installed(collected: Path, tmp_path: Path):
    copy = tmp_path / "send"
    shutil.copytree(collected, copy)
    damaged = copy / "piece-0001"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (copy / "piece-0002").unlink()
    run = install(copy, tmp_path / "site")
    assert run.returncode == 1 and not (tmp_path / "site").exists()
    assert run.stderr == "install.sh: missing or damaged, copy again: piece-0001 piece-0002\n"
    for name in ("piece-0001", "piece-0002"):
        shutil.copy(collected / name, copy)
    sums = copy / "SHA256SUMS"
    sums.write_text(sums.read_text().splitlines(keepends=True)[0])
    for _ in range(2):
        run = install(copy, tmp_path / "site")
        assert (run.returncode, run.stderr) == (1, "install.sh: missing or damaged, copy again: SHA256SUMS\n")
        sums.unlink(missing_ok=True)
    shutil.copy(collected / "SHA256SUMS", copy)
    assert install(copy, tmp_path / "site").returncode == 0


def test_a_target_is_where_it_was_asked_for(collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert install(collected, Path("site")).returncode == 0
    assert (tmp_path / "site" / "example_top.py").exists()


def test_another_run_makes_the_same_pieces_without_downloading_again(index: Path, collected: Path, tmp_path: Path):
    """As after a cut: OUT/wheels is there."""
    out = tmp_path / "out"
    shutil.copytree(collected.parent / "wheels", out / "wheels")
    (out / "wheels" / "example_top-1.0-cp30-cp30-manylinux_2_17_x86_64.whl").write_text("of a run for another Python")
    times = {path: path.stat().st_mtime_ns for path in (out / "wheels").iterdir()}
    run = collect(index, out, "--piece-size", "50K", "--arch", "90", host="torch==2.11.0\nexample-there==3.0\n")
    assert run.returncode == 0, run.stderr
    assert {path: path.stat().st_mtime_ns for path in (out / "wheels").iterdir()} == times
    assert (out / "send" / "SHA256SUMS").read_text() == (collected / "SHA256SUMS").read_text()


def test_a_requirement_that_does_not_fit_the_hosts_torch_is_refused(index: Path, tmp_path: Path):
    run = collect(index, tmp_path / "out", requirement="torch==2.13.0", host="torch==2.11.0+cu130\n")
    assert run.returncode != 0 and "conflict" in run.stderr and "torch==2.11.0" in run.stderr
    assert not list((tmp_path / "out" / "send").iterdir())


@pytest.mark.parametrize("arguments, says", [
    ([], "OUT is missing"), (["x", "--arch"], "--arch needs a value"), (["x", "--what", "1"], "unknown option --what"),
    (["x", "--have", "no/file"], "--have no/file: no such file"), (["x", "--drop", "*"], "--drop needs --arch")])
def test_bad_arguments(arguments: list[str], says: str, tmp_path: Path):
    run = subprocess.run(["bash", str(LAUNCH / "wheelhouse.sh"), *arguments], cwd=tmp_path, text=True,
                         capture_output=True)
    assert run.returncode == 2 and run.stderr.endswith(f"wheelhouse.sh: {says}\n")
    assert not list(tmp_path.iterdir())


def test_another_python_is_refused(collected: Path, tmp_path: Path):
    copy = tmp_path / "send"
    shutil.copytree(collected, copy)
    script = copy / "install.sh"
    script.write_text(script.read_text().replace(VERSION, "3.99"))
    run = install(copy, tmp_path / "site")
    assert run.returncode == 2 and "these wheels are for Python 3.99" in run.stderr


def test_a_slimmed_library_holds_one_architecture(index: Path, tmp_path: Path):
    slim = slim_wheel.slim_library(LIBRARY, 90)
    assert len(slim) == len(LIBRARY) and NEW in slim and OLD not in slim and PTX not in slim
    (_, kept), (_, alone) = slim_wheel.fat_binaries(slim)
    assert [(entry.kind, entry.architecture) for entry in kept] == [(2, 90)]
    assert slim[kept[0].end - len(NEW):kept[0].end] == NEW
    assert [(entry.kind, entry.architecture) for entry in alone] == [(2, 80), (1, 80)]  # nothing in it for 9.0
    assert slim.startswith(b"\x7fELF before") and b"between" in slim and slim.endswith(b"not one")
    assert slim_wheel.slim_library(slim, 90) == slim and slim_wheel.slim_library(LIBRARY, 100) == LIBRARY
    for cut in range(0, len(LIBRARY), 997):  # whatever else begins with the magic number
        assert len(slim_wheel.slim_library(LIBRARY[:cut], 90)) == cut


def test_a_slimmed_wheel_records_what_it_holds(index: Path, tmp_path: Path):
    (big,) = index.glob("example_big*")
    new = slim_wheel.slim_wheel(big, 90, tmp_path)
    assert new.name == "example_big-2.0-1sm90-py3-none-manylinux_2_17_x86_64.whl"
    with zipfile.ZipFile(new) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        rows = list(csv.reader(io.StringIO(archive.read("example_big-2.0.dist-info/RECORD").decode())))
        assert sorted(row[0] for row in rows) == sorted(names) and FA3 in names and FA2 not in names
        for name, digest, size in rows[:-1]:
            data = archive.read(name)
            want = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={want}", str(len(data)))
        assert rows[-1] == ["example_big-2.0.dist-info/RECORD", "", ""]
        assert archive.read("example_big.so") == slim_wheel.slim_library(LIBRARY, 90)
        assert b"\nBuild: 1sm90\n" in archive.read("example_big-2.0.dist-info/WHEEL")


def test_dropped_files_are_not_in_the_record(index: Path, tmp_path: Path):
    (big,) = index.glob("example_big*")
    with zipfile.ZipFile(slim_wheel.slim_wheel(big, 100, tmp_path, ["vllm/*/_vllm_fa2*", "pages.*"])) as archive:
        names = set(archive.namelist())
        record = archive.read("example_big-2.0.dist-info/RECORD").decode()
        assert names & {FA2, FA3, "pages.bin", "example_big.so"} == {FA3, "example_big.so"}
        assert {row[0] for row in csv.reader(io.StringIO(record))} == names


def test_a_wheel_without_gpu_code_stays_as_it_is(index: Path, tmp_path: Path):
    (there,) = index.glob("example_there*")
    new = slim_wheel.slim_wheel(there, 90, tmp_path)
    assert new.name == there.name and new.read_bytes() == there.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [there.name]
