"""The doctor: reading pins, comparing versions, and telling a light install from a full one."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from srpo import doctor
from srpo.doctor import Finding

ROOT = Path(doctor.__file__).parents[1]
REQUIRES = [
    "torch>=2.11", 'triton>=3.6; platform_system == "Linux"',
    'srpo[train,small]; extra == "cpu"', "torch==2.13.0; extra == 'cpu'", 'vllm==0.32.0; extra == "gpu"',
    'latex2sympy2_extended[antlr4_13_2]==1.11.0; extra == "train"', 'types-PyYAML; extra == "small"',
]


@pytest.fixture
def installed(monkeypatch):
    """Make these the versions of installed packages, and srpo's requirements REQUIRES."""
    def installed(**versions: str):
        def version(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)

    return installed


def test_pins_follow_the_extras_that_an_extra_names():
    assert doctor.pins(REQUIRES, "cpu") == {"torch": "2.13.0", "latex2sympy2_extended": "1.11.0", "types-PyYAML": ""}
    assert doctor.pins(REQUIRES, "gpu") == {"vllm": "0.32.0"}


def test_versions_are_compared_with_the_pins(installed):
    installed(srpo="0.1.0", torch="2.13.0+cpu", latex2sympy2_extended="1.10.0")
    assert list(doctor.packages("cpu")) == [
        Finding("srpo", "0.1.0"),
        Finding("latex2sympy2_extended", "1.10.0, pinned is 1.11.0",
                "pip install --no-deps 'latex2sympy2_extended==1.11.0'"),
        Finding("torch", "2.13.0+cpu"),
        Finding("types-PyYAML", "not installed", "pip install --no-deps types-PyYAML"),
        Finding("at their pins", "1 of the 3 packages of srpo[cpu]"),
    ]


def test_without_a_main_package_training_is_refused(installed):
    installed(srpo="0.1.0", torch="2.13.0")
    assert Finding("vllm", "not installed", "pip install 'vllm==0.32.0'", needed=True) in doctor.packages("gpu")


def test_not_installed_at_all(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    finding, = doctor.packages("gpu")
    assert finding.fix == "make setup in the repository" and not finding.needed


@pytest.mark.parametrize(("code", "expected"), [
    ("pass", ""),
    ("import no_such_package_here", "ModuleNotFoundError: No module named 'no_such_package_here'"),
    ("import os; os.kill(os.getpid(), 11)", "ended by signal 11"),
])
def test_last_error_of_a_child(code, expected):
    assert doctor._python(code, timeout=60) == ("", expected)


def test_child_that_hangs():
    assert doctor._python("import time; time.sleep(60)", timeout=1) == ("", "no answer in 1 s")


def test_a_sandbox_that_hangs_is_a_finding(monkeypatch):
    def run(command, *, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    assert doctor.sandbox().text == "code problems cannot be graded: no answer in 120 s"


@pytest.mark.parametrize(("findings", "code"), [
    ([Finding("a", "fine")], 0),
    ([Finding("a", "old", "renew it")], 0),
    ([Finding("a", "missing", "get it", needed=True)], 1),
    ([Finding("a", "there", "", needed=True)], 0),
])
def test_exit_code_and_marks(monkeypatch, capsys, findings, code):
    for part in ("machine", "packages"):
        monkeypatch.setattr(doctor, part, lambda argument: iter(()))
    monkeypatch.setattr(doctor, "backends", lambda: iter(()))
    monkeypatch.setattr(doctor, "training", lambda: iter(findings))
    assert doctor.doctor() == code
    out = capsys.readouterr().out
    mark, verdict = ("x", "cannot run here; see the lines marked with x") if code else (" ", "can run here")
    if findings[0].fix and not code:
        mark = "!"
    assert f"\n {mark} a " in out and out.endswith(f"\n`srpo train` {verdict}\n")
    assert not findings[0].fix or f"-> {findings[0].fix}\n" in out


def test_light_install(tmp_path):
    """A fresh environment without a single package: every part still speaks, and training is refused."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    done = subprocess.run([tmp_path / "venv/bin/python", "-m", "srpo", "doctor"], capture_output=True, text=True,
                          cwd=tmp_path, env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"})
    assert (done.returncode, done.stderr) == (1, "")
    assert "\n x torch and kernels" in done.stdout and "No module named 'torch'" in done.stdout
    assert "\n x imports of srpo train" in done.stdout and "`srpo train` cannot run here" in done.stdout


def test_full_install():
    """Here, where the tests run, training can run: the doctor says so and names the backends."""
    done = subprocess.run([sys.executable, "-m", "srpo", "doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "policy_loss" in done.stdout and "attention" in done.stdout and "runs and judges programs" in done.stdout
