#!/usr/bin/env bash
# Long runs that CI has no time for. Run by hand; ends with `N passed, N failed`.
#   bash tests/soak.sh [SECTION ...]     sections: fuzz (the default: all)
#   LONGHAUL_SOAK_SECONDS   time of each timed target (default 600)
#   LONGHAUL_FUZZ_SEED      first seed (default: from the clock, printed)
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${LONGHAUL_SOAK_SECONDS:-600}
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || { echo "soak.sh: LONGHAUL_SOAK_SECONDS is '$seconds'; must be a whole number from 1" >&2; exit 2; }
passed=0
failed=0

note() {  # note NAME STATUS
  if [ "$2" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
  printf '%-28s %s\n' "$1" "$([ "$2" -eq 0 ] && echo passed || echo FAILED)"
}

# Seed after seed of the mutation tests under AddressSanitizer, until the time is over or one fails.
fuzz_target() {
  local target=$1 seed=${LONGHAUL_FUZZ_SEED:-$(date +%s)} end=$((SECONDS + seconds)) runs=0 log status
  log=$(mktemp)
  echo "$target: seeds from $seed"
  while [ "$SECONDS" -lt "$end" ]; do
    status=0
    LONGHAUL_FUZZ_SEED=$seed timeout "$((seconds + 600))" "build/asan/bin/$target" --gtest_brief=1 >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
      tail -n 40 "$log"
      echo "$target: failed; again with: LONGHAUL_FUZZ_SEED=$seed build/asan/bin/$target"
      break
    fi
    seed=$((seed + 1))
    runs=$((runs + 1))
  done
  echo "$target: $runs seeds"
  rm -f "$log"
  note "$target" "$status"
}

fuzz() {
  cmake --preset asan >/dev/null
  cmake --build --preset asan -j "$(nproc)" --target formats_fuzz_test data_fuzz_test
  fuzz_target formats_fuzz_test
  fuzz_target data_fuzz_test
}

sections=("$@")
[ ${#sections[@]} -gt 0 ] || sections=(fuzz)
for name in "${sections[@]}"; do
  case $name in
    fuzz) "$name" ;;
    *) echo "soak.sh: no section '$name'; there is: fuzz" >&2; exit 2 ;;
  esac
done
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
