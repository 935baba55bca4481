#!/usr/bin/env bash
# Install the wheels of launch/wheelhouse.sh from the pieces beside this file, without a network:
#
#     bash install.sh [OPTIONS OF pip install, --target DIR for one]
#
# Nothing is installed unless every piece is there and whole. PYTHON says which interpreter; TMPDIR needs room for all.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$found" != "@PYTHON@" ]; then
    echo "install.sh: these wheels are for Python @PYTHON@, $python is $found: set PYTHON" >&2
    exit 2
fi
bad=$(cd "$here" && { echo "@SUMS@  SHA256SUMS" | sha256sum --quiet --check && sha256sum --quiet --check SHA256SUMS
    } 2>/dev/null | sed 's/: FAILED.*//') || true
if [ -n "$bad" ]; then
    echo "install.sh: missing or damaged, copy again:" $bad >&2
    exit 1
fi
house=$(mktemp -d)
trap 'rm -rf "$house"' EXIT
(cd "$here" && cut -d' ' -f3 SHA256SUMS | xargs cat) | tar -C "$house" -xf -
"$python" -m pip install --disable-pip-version-check --no-index --no-deps "$@" "$house"/*.whl
