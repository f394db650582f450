#!/usr/bin/env bash
# Long runs that CI has no time for. Run by hand; ends with the table of all sections run so far (build/soak/rows) and
# `N passed, N failed`.
#   bash tests/soak.sh [SECTION ...]     sections: fuzz simulate powercuts mutations sigstop cancels kills
#                                        demo outage request_ids (the default: all)
#   LONGHAUL_SOAK_SECONDS   time of each timed target (default 600)
#   LONGHAUL_FUZZ_SEED      first seed (default: from the clock, printed)
#   LONGHAUL_FUZZ_TARGETS   which of the fuzz tests (default: all four)
#   LONGHAUL_SOAK_RUNS      seeded runs of the simulator (default 100000)
#   LONGHAUL_SOAK_CUTS      power cuts (default 1000)
#   LONGHAUL_SOAK_MUTATIONS which planted bugs (default: all of tests/mutations)
#   LONGHAUL_SOAK_STOPS, LONGHAUL_SOAK_CANCELS, LONGHAUL_SOAK_KILLS, LONGHAUL_SOAK_REQUEST_IDS
#                           rounds of the section (default 200, 200, 1000, 1000)
#   LONGHAUL_SOAK_DEMO_S    how long ten jobs on three workers are disturbed (default 600)
#   LONGHAUL_SOAK_OUTAGE_S  how long the scheduler is away (default 600)
# simulate, powercuts, sigstop, cancels, kills and request_ids go on where an earlier run was stopped (build/soak/SECTION.next; remove it to begin again).
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${LONGHAUL_SOAK_SECONDS:-600}
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || { echo "soak.sh: LONGHAUL_SOAK_SECONDS is '$seconds'; must be a whole number from 1" >&2; exit 2; }
passed=0
failed=0

note() {  # note SECTION STATUS COUNT SEEDS: its row of the table
  local outcome=passed
  if [ "$2" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)) outcome=FAILED; fi
  mkdir -p build/soak/rows
  printf '| %s | %s | %s | %s | %s | %s |\n' "$1" "$3" "$4" "$outcome" "$(git describe --always --dirty)" \
    "$(date -u '+%F %H:%M')" >"build/soak/rows/$1"
  printf '%-28s %s\n' "$1" "$outcome"
}

table() {
  printf '\n%s cores of %s, %s\n\n' "$(nproc)" "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)" "$(uname -sr)"
  printf '| %s | %s | %s | %s | %s | %s |\n' section 'how much' seeds outcome commit 'ended (UTC)' --- --- --- --- --- ---
  cat build/soak/rows/*
}

# Seed after seed of the mutation tests under AddressSanitizer, until the time is over or one fails.
fuzz_target() {
  local target=$1 first=${LONGHAUL_FUZZ_SEED:-$(date +%s)} end=$((SECONDS + seconds)) seed log status
  log=$(mktemp)
  echo "$target: seeds from $first"
  seed=$first
  while [ "$SECONDS" -lt "$end" ]; do
    status=0
    LONGHAUL_FUZZ_SEED=$seed timeout "$((seconds + 600))" "build/asan/bin/$target" --gtest_brief=1 >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
      tail -n 40 "$log"
      echo "$target: failed; again with: LONGHAUL_FUZZ_SEED=$seed build/asan/bin/$target"
      break
    fi
    seed=$((seed + 1))
  done
  echo "$target: $((seed - first)) seeds"
  rm -f "$log"
  note "$target" "$status" "$seconds s" "$first to $((seed - 1))"
}

# The same for the targets that count seeds and time themselves (tests/fuzz/fuzz_loop.h): each of their tests gets its
# part of the time.
fuzz_messages() {
  local target=$1 seed=${LONGHAUL_FUZZ_SEED:-$(date +%s)} tests log status=0
  log=$(mktemp)
  tests=$("build/asan/bin/$target" --gtest_list_tests | grep -c '^  ')
  LONGHAUL_FUZZ_SEED=$seed LONGHAUL_FUZZ_SECONDS=$(((seconds + tests - 1) / tests)) \
    timeout "$((seconds + 600))" "build/asan/bin/$target" --gtest_brief=1 >"$log" 2>&1 || status=$?
  local counts
  counts=$(tr '\r' '\n' <"$log" | grep -o '[0-9][0-9]* seeds, from [0-9]*' || true)
  echo "$counts"
  [ "$status" -eq 0 ] || tr '\r' '\n' <"$log" | tail -n 40
  rm -f "$log"
  note "$target" "$status" "$seconds s" "${counts//$'\n'/; }"
}

fuzz() {
  cmake --preset asan >/dev/null
  local targets target
  read -ra targets <<<"${LONGHAUL_FUZZ_TARGETS:-formats_fuzz_test data_fuzz_test requests_fuzz_test worker_messages_fuzz_test}"
  cmake --build --preset asan -j "$(nproc)" --target "${targets[@]}"
  for target in "${targets[@]}"; do
    case $target in
      requests_fuzz_test | worker_messages_fuzz_test) fuzz_messages "$target" ;;
      *) fuzz_target "$target" ;;
    esac
  done
}

simulator() { cmake --preset dev >/dev/null && cmake --build --preset dev -j "$(nproc)" --target simulate; }

# seeds_in_parts SECTION FIRST LAST PART ARGUMENT...: seed after seed, remembering how far it came.
seeds_in_parts() {
  local section=$1 first=$2 seed=$2 last=$3 part=$4 next=build/soak/$1.next end status=0
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
  note "$section" "$status" "$((seed - first)) runs" "$first to $((seed - 1))"
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
  note powercuts "$status" "$cuts power cuts" "1 to $((seed - 1))"
}

processes() {
  cmake --preset dev >/dev/null
  cmake --build --preset dev -j "$(nproc)" --target longhaul_server_main longhaul_worker_main longhaul_train_main longhaul_cli_main
}

# rounds_in_parts SECTION TOTAL PART COMMAND...: so many rounds, a part at a time, remembering how far it came. A part is
# the same again with the seed that it prints.
rounds_in_parts() {
  local section=$1 total=$2 part=$3 next=build/soak/$1.next done=0 rounds status=0
  shift 3
  mkdir -p build/soak
  [ ! -f "$next" ] || done=$(cat "$next")
  while [ "$done" -lt "$total" ]; do
    rounds=$((total - done < part ? total - done : part))
    echo "$section: rounds $((done + 1)) to $((done + rounds)), LONGHAUL_SOAK_ROUNDS=$rounds LONGHAUL_SOAK_SEED=$((done + 1))"
    LONGHAUL_SOAK_ROUNDS=$rounds LONGHAUL_SOAK_SEED=$((done + 1)) "$@" || { status=1; break; }
    done=$((done + rounds))
    echo "$done" >"$next"
  done
  note "$section" "$status" "$done rounds" "parts of $part, from 1"
}

sigstop() { processes && rounds_in_parts sigstop "${LONGHAUL_SOAK_STOPS:-200}" 20 bash tests/e2e/run.sh build/dev/bin stopped_past_lease; }
cancels() { processes && rounds_in_parts cancels "${LONGHAUL_SOAK_CANCELS:-200}" 50 bash tests/e2e/run.sh build/dev/bin cancelled_while_running; }
kills() { processes && rounds_in_parts kills "${LONGHAUL_SOAK_KILLS:-1000}" 50 bash tests/e2e/run.sh build/dev/bin killed_at_random; }

demo() {
  local status=0 seconds=${LONGHAUL_SOAK_DEMO_S:-600}
  processes
  LONGHAUL_SOAK_DEMO_S=$seconds bash tests/e2e/run.sh build/dev/bin three_workers_ten_jobs || status=1
  note demo "$status" "$seconds s" 1
}

outage() {
  local status=0 seconds=${LONGHAUL_SOAK_OUTAGE_S:-600}
  processes
  LONGHAUL_SOAK_OUTAGE_S=$seconds bash tests/e2e/run.sh build/dev/bin outage outage_of_short_leases || status=1
  note outage "$status" "$seconds s, long and short leases" ""
}

request_ids() {
  cmake --preset dev >/dev/null
  cmake --build --preset dev -j "$(nproc)" --target rpc_test
  rounds_in_parts request_ids "${LONGHAUL_SOAK_REQUEST_IDS:-1000}" 250 \
    build/dev/bin/rpc_test --gtest_brief=1 --gtest_filter=CreateTest.OneRequestIdFrom64ClientsIsOneJob
}

mutations() {
  local status=0 names
  read -ra names <<<"${LONGHAUL_SOAK_MUTATIONS:-$(basename --suffix=.patch --multiple tests/mutations/*.patch | tr '\n' ' ')}"
  bash tests/mutations.sh "${names[@]}" || status=1
  note mutations "$status" "${#names[@]} bugs" ""
}

all=(fuzz simulate powercuts mutations sigstop cancels kills demo outage request_ids)
sections=("$@")
[ ${#sections[@]} -gt 0 ] || sections=("${all[@]}")
for name in "${sections[@]}"; do
  [[ " ${all[*]} " == *" $name "* ]] || { echo "soak.sh: no section '$name'; there are: ${all[*]}" >&2; exit 2; }
done
for name in "${sections[@]}"; do "$name"; done
table
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
