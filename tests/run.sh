#!/usr/bin/env bash
# The test command: installs what it needs, checks the tree, builds everything once, runs every test that needs no GPU,
# with real processes where it takes them, and again under the sanitizers what they can see. Prints the time of each
# phase.
#   bash tests/run.sh [PHASE ...]     phases: deps tree build unit e2e asan tsan mutations; all of them by default
set -euo pipefail
cd "$(dirname "$0")/.."

jobs=$(nproc)
lanes=$((jobs + 1))  # of tests: much of some is waiting
declare -a report
failed=0

phase() {  # phase NAME COMMAND...
  local name=$1 start=$SECONDS status=passed
  shift
  printf '\n== %s\n' "$name"
  if ! "$@"; then
    status=FAILED
    failed=1
  fi
  report+=("$(printf '%-8s %-7s %4d s' "$name" "$status" $((SECONDS - start)))")
  [ "$status" = passed ]
}

deps() { bash deploy/install_deps.sh; }

tree() {
  python3 tests/check_tree.py || return 1
  git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format-14 --dry-run -Werror
}

build() { cmake --preset dev >/dev/null && cmake --build --preset dev -j "$jobs"; }

unit() { ctest --test-dir build/dev --output-on-failure -LE gpu -j "$lanes"; }

e2e() { bash tests/e2e/run.sh build/dev/bin; }

# sanitizer PRESET LABELS: builds only the tests with those labels.
sanitizer() {
  local preset=$1 labels=$2 targets
  cmake --preset "$preset" >/dev/null || return 1
  targets=$(ctest --test-dir "build/$preset" -N -L "$labels" | sed -n 's/^ *Test *#[0-9]*: //p')
  # shellcheck disable=SC2086
  cmake --build --preset "$preset" -j "$jobs" --target $targets || return 1
  ctest --test-dir "build/$preset" --output-on-failure -L "$labels" -j "$lanes"
}

asan() { sanitizer asan 'core|parser'; }
# What shares data among threads and has no gRPC, whose uninstrumented libraries make false reports.
tsan() { TSAN_OPTIONS="halt_on_error=1 suppressions=$PWD/tests/tsan.supp" sanitizer tsan 'threads'; }

# Two planted bugs, of executables that build quickly; `tests/soak.sh mutations` has all of them.
mutations() { bash tests/mutations.sh terminal_moves_on expired_tokens_work; }

phases=("$@")
[ ${#phases[@]} -gt 0 ] || phases=(deps tree build unit e2e asan tsan mutations)
for name in "${phases[@]}"; do
  case $name in
    deps | build) phase "$name" "$name" || break ;;
    tree | unit | e2e | asan | tsan | mutations) phase "$name" "$name" || true ;;
    *) echo "tests/run.sh: no phase '$name'; phases are deps tree build unit e2e asan tsan mutations" >&2; exit 2 ;;
  esac
done

printf '\n== time by phase\n'
printf '%s\n' "${report[@]}"
printf 'total %d s\n' "$SECONDS"
passed=$(printf '%s\n' "${report[@]}" | grep -c passed || true)
printf '%d passed, %d failed\n' "$passed" $((${#report[@]} - passed))
exit "$failed"
