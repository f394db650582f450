#!/usr/bin/env bash
# Runs what `ctest -L gpu` names, on a machine that has a GPU but no build: the suites in a folder that
# deploy/gpu_folder.sh made.
#
#   bash tests/gpu_suites.sh FOLDER [memcheck|racecheck]
#
# Prints device, driver and date, a line a test that failed or was skipped, and each suite's summary; all of each suite's
# output is in FOLDER/SUITE.log. Exits 1 where one failed. SUITES="a b" runs these alone.
# With memcheck or racecheck the tests run under compute-sanitizer, which makes a kernel 10 to 1,000 times slower:
# without those of sizes beyond 2^31 and those that make a process of their own fail. SUITE_FILTER takes others.
set -uo pipefail

if [ $# -lt 1 ] || [ ! -d "$1" ]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
folder=$(cd "$1" && pwd)
tool=${2:-}
# Golden files.
if [ -d "$folder/tests/golden" ]; then LONGHAUL_SOURCE_DIR=$folder; else LONGHAUL_SOURCE_DIR=$PWD; fi
export LONGHAUL_SOURCE_DIR

# CUDA's and cuDNN's libraries may be in a Python environment's folders.
for library in libcudnn.so.9 libcublasLt.so.13; do
  ldconfig -p | grep --quiet "$library" && continue
  found=$(find /usr /opt -name "$library" -print -quit 2>/dev/null)
  [ -n "$found" ] && LD_LIBRARY_PATH=$(dirname "$found"):${LD_LIBRARY_PATH:-}
done
export LD_LIBRARY_PATH

date --utc '+%Y-%m-%d %H:%M UTC'
nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader

# Not under a sanitizer: tests that make a process of their own fail, sizes beyond 2^31, what fills the device.
slow='-*DeathTest*:*Large*:*large*:*Exhausts*:*OutOfMemory*'
failed=0
for suite in ${SUITES:-kernels_cuda_test cuda_fused_test cuda_engine_test cuda_libs_test}; do
  log=$folder/$suite${tool:+.$tool}.log
  begin=$(date +%s)
  if [ -z "$tool" ]; then
    "$folder/$suite" --gtest_print_time=0 >"$log" 2>&1
  else
    compute-sanitizer --tool "$tool" --error-exitcode 99 "$folder/$suite" --gtest_filter="${SUITE_FILTER:-$slow}" >"$log" 2>&1
  fi
  code=$?
  [ $code -eq 0 ] || failed=1
  echo "== $suite${tool:+ under $tool}: exit $code, $(($(date +%s) - begin)) s"
  grep -E '^\[  (SKIPPED|FAILED ) ?\]|^\[  PASSED  \]|^========= ' "$log" | grep -v 'COMPUTE-SANITIZER' | sort | uniq -c | sed 's/^ *1 //' | head -60
done
exit $failed
