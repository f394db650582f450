#!/usr/bin/env bash
# End-to-end tests with real processes and sockets on loopback.
#   bash tests/e2e/run.sh [BIN_DIR [CASE ...]]     BIN_DIR: default build/dev/bin
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bin=${1:-build/dev/bin}
[ $# -eq 0 ] || shift
for program in longhaul longhauld longhaul-worker longhaul-train; do
  [ -x "$bin/$program" ] || { echo "run.sh: $bin/$program is missing; build first: cmake --preset dev && cmake --build --preset dev" >&2; exit 1; }
done

# For the one case that is a client with nothing but grpcio; kept between runs.
venv=build/e2e-venv
if ! "$venv/bin/python" -c 'import grpc, grpc_reflection' 2>/dev/null; then
  python3 -m venv --clear "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check grpcio==1.85.1 grpcio-reflection==1.85.1
fi
export LONGHAUL_E2E_PYTHON=$PWD/$venv/bin/python
export PYTHONDONTWRITEBYTECODE=1

work=$(mktemp --directory)
python3 tests/e2e/make_tiny_model.py "$work/models/tiny"
# Not exec: the folder goes away on success and stays for a look on failure.
if python3 tests/e2e/driver.py "$bin" "$work" "$@"; then
  rm -rf "$work"
else
  status=$?
  echo "run.sh: logs are in $work" >&2
  exit "$status"
fi
