#!/usr/bin/env bash
# Long runs that CI has no time for. Run by hand; ends with `N passed, N failed`.
#   bash tests/soak.sh [SECTION ...]     sections: fuzz simulate powercuts mutations (the default: all)
#   LONGHAUL_SOAK_SECONDS   time of each timed target (default 600)
#   LONGHAUL_FUZZ_SEED      first seed (default: from the clock, printed)
#   LONGHAUL_SOAK_RUNS      seeded runs of the simulator (default 100000)
#   LONGHAUL_SOAK_CUTS      power cuts (default 1000)
# simulate and powercuts go on where an earlier run was stopped (build/soak/SECTION.next; remove it to begin again).
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

simulator() { cmake --preset dev >/dev/null && cmake --build --preset dev -j "$(nproc)" --target simulate; }

# seeds_in_parts SECTION FIRST LAST PART ARGUMENT...: seed after seed, remembering how far it came.
seeds_in_parts() {
  local section=$1 seed=$2 last=$3 part=$4 next=build/soak/$1.next end status=0
  shift 4
  mkdir -p build/soak
  [ ! -f "$next" ] || seed=$(cat "$next")
  while [ "$seed" -le "$last" ]; do
    end=$((seed + part - 1))
    [ "$end" -le "$last" ] || end=$last
    build/dev/bin/simulate "$@" --seeds "$seed..$end" --out build/soak || { status=1; break; }
    seed=$((end + 1))
    echo "$seed" >"$next"
  done
  note "$section" "$status"
}

simulate() {
  simulator
  seeds_in_parts simulate 1 "${LONGHAUL_SOAK_RUNS:-100000}" 5000
}

# Until so many power cuts are counted: a run has a few.
powercuts() {
  simulator
  local wanted=${LONGHAUL_SOAK_CUTS:-1000} next=build/soak/powercuts.next seed=1 cuts=0 line status=0
  mkdir -p build/soak
  [ ! -f "$next" ] || read -r seed cuts <"$next"
  while [ "$cuts" -lt "$wanted" ]; do
    line=$(build/dev/bin/simulate --disk --seeds "$seed..$((seed + 19))" --out build/soak) || status=1
    echo "$line"
    [ "$status" -eq 0 ] || break
    cuts=$((cuts + $(sed -n 's/.* \([0-9]*\) power cuts.*/\1/p' <<<"$line")))
    seed=$((seed + 20))
    echo "$seed $cuts" >"$next"
  done
  echo "$cuts power cuts"
  note powercuts "$status"
}

mutations() {
  local status=0
  bash tests/mutations.sh || status=1
  note mutations "$status"
}

sections=("$@")
[ ${#sections[@]} -gt 0 ] || sections=(fuzz simulate powercuts mutations)
for name in "${sections[@]}"; do
  case $name in
    fuzz | simulate | powercuts | mutations) "$name" ;;
    *) echo "soak.sh: no section '$name'; there are: fuzz simulate powercuts mutations" >&2; exit 2 ;;
  esac
done
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
