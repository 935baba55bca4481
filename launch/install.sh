#!/usr/bin/env bash
# Install the pinned dependencies into a virtual environment: launch/install.sh VENV. CUDA builds where the NVIDIA driver
# answers, CPU builds otherwise. PYTHON says which interpreter to begin from.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
pip="$venv/bin/python -m pip"
named="$pip install -q --disable-pip-version-check -c requirements/constraints.txt"

${PYTHON:-python3} -c 'import sys; sys.exit(sys.version_info < (3, 11) and "srpo needs Python 3.11 or newer, found " + sys.version.split()[0])'
[ -x "$venv/bin/python" ] || ${PYTHON:-python3} -m venv "$venv"
$named pip setuptools wheel

if nvidia-smi -L >/dev/null 2>&1; then
    echo "NVIDIA GPU found: installing CUDA builds"
    $pip install -q -r requirements/train.txt -r requirements/gpu.txt -r requirements/dev.txt
    $named --no-build-isolation flash-attn ||
        echo "flash-attn did not build; torch's own variable-length attention will be used"
else
    echo "no NVIDIA GPU: installing CPU builds"
    torch=$(grep '^torch==' requirements/cpu.txt)
    # The CPU build is not on PyPI. uv knows where PyTorch keeps it; a local package source comes first.
    if ! $pip install -q "$torch+cpu" 2>/dev/null; then
        $named uv
        "$venv/bin/uv" pip install -q --python "$venv/bin/python" --torch-backend cpu "$torch"
    fi
    $pip install -q --no-deps -r requirements/train.txt -r requirements/cpu.txt -r requirements/dev.txt
fi
