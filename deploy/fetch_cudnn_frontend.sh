#!/usr/bin/env bash
# Fetches the C++ headers of NVIDIA's cuDNN front end (Apache-2.0 and MIT) from its PyPI wheel, checksum pinned, into DIR:
#   deploy/fetch_cudnn_frontend.sh DIR      headers in DIR/include, licences in DIR/licenses
# Does nothing where they are there already. CMake calls it where CUDA is on.
set -euo pipefail

version=1.32.0
# The headers are the same in every wheel; this one is for Python 3.11, whatever runs here.
sha256=c6006556017a4d1c914c52a556c71b1267f2d6a0500f742e7b4edef539878df0

if [ $# -ne 1 ]; then
  echo "usage: $0 DIR" >&2
  exit 2
fi
dir=$1
if [ "$(cat "$dir/version" 2>/dev/null)" = "$version $sha256" ]; then
  exit 0
fi
if ! python3 -m pip --version >/dev/null 2>&1; then
  echo "$0: needs python3 with pip; or pass -DLONGHAUL_CUDNN_FRONTEND_DIR=DIR to CMake, DIR/include holding cudnn_frontend.h" >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "nvidia-cudnn-frontend==$version --hash=sha256:$sha256" >"$work/requirements.txt"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
  --python-version 3.11 --implementation cp --abi cp311 --platform manylinux_2_28_x86_64 \
  --requirement "$work/requirements.txt" --dest "$work"

mkdir "$work/wheel"
python3 -m zipfile -e "$work"/nvidia_cudnn_frontend-*.whl "$work/wheel"
mkdir -p "$dir"
rm -rf "$dir/include" "$dir/licenses" "$dir/version"
cp -r "$work/wheel/include" "$dir/include"
cp -r "$work"/wheel/*.dist-info/licenses "$dir/licenses"
# Last: its presence says that the rest is whole.
echo "$version $sha256" >"$dir/version"
