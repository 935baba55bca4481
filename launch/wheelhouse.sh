#!/usr/bin/env bash
# Collect, on a connected machine, the wheels that a GPU host without a network needs to run srpo:
#
#     launch/wheelhouse.sh OUT [--python 3.12] [--piece-size 60M] [--arch 90 [--drop PATTERN]...] [--have FILE]
#         [--requirements FILE]... [--no-deps]
#
# Copy OUT/send to the other side, all at once or piece by piece, and run install.sh there; it says which pieces are
# missing or damaged. OUT/wheels keeps what was downloaded: another run fetches only what is new.
#
# --have FILE is `pip freeze` of the host: what it has in the very version that is wanted stays away, and its torch,
# triton and CUDA libraries are never replaced; what its torch pins came with it, named in FILE or not. pip refuses a
# requirement that does not fit them, and says which; vLLM is built for one torch, so a host with another one needs a
# --requirements file with the vLLM that fits it. --no-deps collects exactly what the files name, and asks for no more.
# --arch 90 leaves out code for other GPUs, where that can be, and --drop what matches in any wheel (slim_wheel.py).
# Wheels come from wherever pip is set up to look; x86-64 Linux only. PYTHON says which interpreter's pip.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

usage() {
    sed -n '2,6p' "$0" | cut -c3- >&2
    echo "wheelhouse.sh: $1" >&2
    exit 2
}

[ $# -ge 1 ] && [ "${1#-}" = "$1" ] || usage "OUT is missing"
out=$1 version=3.12 size=60M arch='' have='' requirements=() deps=() drop=()
shift
while [ $# -gt 0 ]; do
    [ "$1" != --no-deps ] || { deps=(--no-deps); shift; continue; }
    [ $# -ge 2 ] || usage "$1 needs a value"
    case $1 in
        --python) version=$2 ;;
        --piece-size) size=$2 ;;
        --arch) arch=$2 ;;
        --drop) drop+=(--drop "$2") ;;
        --have) have=$2 ;;
        --requirements) requirements+=(-r "$2") ;;
        *) usage "unknown option $1" ;;
    esac
    shift 2
done
[ ${#drop[@]} -eq 0 ] || [ -n "$arch" ] || usage "--drop needs --arch"
[ -z "$have" ] || [ -r "$have" ] || usage "--have $have: no such file"
[ ${#requirements[@]} -gt 0 ] || requirements=(-r "$here/../requirements/train.txt" -r "$here/../requirements/gpu.txt")

mkdir -p "$out/wheels" "$out/send"
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# pip takes a platform tag as it is, without those that it includes.
platform=(--python-version "$version" --implementation cp --only-binary=:all: --platform manylinux1_x86_64
    --platform manylinux2010_x86_64 --platform manylinux2014_x86_64 --platform linux_x86_64)
for minor in $(seq 5 39); do platform+=(--platform "manylinux_2_${minor}_x86_64"); done

# A host's CUDA build is torch==2.11.0+cu130 to itself and torch==2.11.0 to an index.
touch "$work/have" "$work/keep"
[ -z "$have" ] || sed -nE 's/^([A-Za-z0-9._-]+)==([^ ;+]+).*/\1==\2/p' "$have" | tr '_A-Z' '-a-z' > "$work/have"
grep -E '^(torch|triton|nvidia-.*)==' "$work/have" > "$work/keep" || true
# What conflicts with what pip says on its standard output.
"$python" -m pip install --disable-pip-version-check --dry-run --ignore-installed --target "$work/none" \
    "${platform[@]}" "${deps[@]}" "${requirements[@]}" -c "$work/keep" --report "$work/report.json" > "$work/log" ||
    { grep -A 20 -i '^the conflict' "$work/log" >&2; exit 1; }
"$python" - "$work/report.json" "$work/have" > "$work/wanted" <<'END'
import json, re, sys
from urllib.parse import unquote
have = set(open(sys.argv[2]).read().split())
items = {re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(): item
         for item in json.load(open(sys.argv[1]))["install"]}
came, pinned = set(), ["torch"] if any(each.startswith("torch==") for each in have) else []
while pinned:
    name = pinned.pop()
    if name in items and name not in came:
        came.add(name)
        needs = [need.split(";")[0] for need in items[name]["metadata"].get("requires_dist", ())]
        pinned += [re.match(r"[\w.-]+", need)[0].lower() for need in needs if "==" in need]
for name, item in items.items():
    version = item["metadata"]["version"]
    if name not in came and f"{name}=={version.split('+')[0]}" not in have:
        print(f"{name}=={version}", unquote(item["download_info"]["url"]).rsplit("/", 1)[1])
END
[ -s "$work/wanted" ] || { echo "the host has everything"; exit 0; }
"$python" -m pip download --quiet --disable-pip-version-check --no-deps "${platform[@]}" -r <(cut -d' ' -f1 "$work/wanted") \
    -d "$out/wheels"

# Wheels of this run only: OUT/wheels may hold those of others, for another Python too.
mkdir "$work/house"
while read -r _ file; do
    wheel=$out/wheels/$file
    [ -f "$wheel" ] || { echo "wheelhouse.sh: pip left no $file in $out/wheels" >&2; exit 1; }
    if [ -n "$arch" ]; then
        "$python" "$here/slim_wheel.py" "$wheel" --arch "$arch" "${drop[@]}" --out "$work/house"
    else
        cp "$wheel" "$work/house"
    fi
done < "$work/wanted"

# The same wheels make the same pieces, so that those which have arrived need not be sent again.
rm -f "$out"/send/*
find "$work/house" -exec touch -d @0 {} +
tar -C "$work/house" --sort=name --owner=0 --group=0 --numeric-owner --mode=0644 -cf - . |
    split --bytes "$size" --numeric-suffixes --suffix-length 4 - "$out/send/piece-"
(cd "$out/send" && sha256sum piece-* > SHA256SUMS)
sums=$(sha256sum < "$out/send/SHA256SUMS" | cut -d' ' -f1)
sed "s/@PYTHON@/$version/; s/@SUMS@/$sums/" "$here/wheelhouse_install.sh" > "$out/send/install.sh"
echo "$(wc -l < "$work/wanted") wheels, $(du -sh "$out/send" | cut -f1) in $(find "$out/send" -name 'piece-*' | wc -l)" \
    "pieces: copy $out/send, then there: bash install.sh"
