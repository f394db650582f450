#!/usr/bin/env bash
# Seeded bugs. Applies each patch of tests/mutations to a copy of the tree, builds the test that the patch names, and
# expects that test to fail. First all named tests have to pass as they are. Prints a table; exits 1 if a bug is not
# caught.
#   bash tests/mutations.sh [NAME ...]      names of tests/mutations/NAME.patch (default: all)
# A patch begins with three lines: What: (the bug), Target: (the test's executable), Filter: (its gtest filter).
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."

root=$PWD
work=$root/build/mutations
copy=$work/tree
# A failing seed need not be shrunk here.
export LONGHAUL_SIMULATION_SHRINK=0
export CCACHE_BASEDIR=$work

names=("$@")
if [ ${#names[@]} -eq 0 ]; then
  for patch in tests/mutations/*.patch; do names+=("$(basename "$patch" .patch)"); done
fi

field() { sed -n "s/^$2: //p" "$root/tests/mutations/$1.patch" | head -n 1; }

mkdir -p "$copy"
# With their times, so that a second run builds little.
git ls-files -co --exclude-standard | tar --create --files-from=- --ignore-failed-read 2>/dev/null |
  tar --extract --directory="$copy" --keep-newer-files 2>/dev/null || true
# What a run that was stopped has left planted is newer than its original.
for file in $(sed -n 's|^+++ b/||p' tests/mutations/*.patch | sort -u); do
  cmp --silent "$file" "$copy/$file" || cp "$file" "$copy/$file"
done
cd "$copy"
cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo >"$work/configure.log"

run() {  # run NAME: the named test
  timeout 900 "build/bin/$(field "$1" Target)" --gtest_brief=1 --gtest_filter="$(field "$1" Filter)" >"$work/$1.log" 2>&1
}

mapfile -t targets < <(for name in "${names[@]}"; do field "$name" Target; done | sort -u)
cmake --build build -j "$(nproc)" --target "${targets[@]}" >"$work/build.log" || { tail -n 30 "$work/build.log"; exit 1; }

declare -A healthy=()
for name in "${names[@]}"; do  # all of them before the first bug: a target that had one is not built again until the next
  filter=$(field "$name" Filter)
  [ -z "${healthy[$(field "$name" Target)/$filter]:-}" ] || continue
  run "$name" || { tail -n 30 "$work/$name.log"; echo "mutations.sh: $filter fails without any mutation"; exit 1; }
  healthy[$(field "$name" Target)/$filter]=1
done
survived=0
printf '%-28s %-22s %-46s %s\n' bug caught by 'what was wrong'
for name in "${names[@]}"; do
  target=$(field "$name" Target)
  filter=$(field "$name" Filter)
  mapfile -t files < <(sed -n 's|^+++ b/||p' "$root/tests/mutations/$name.patch")
  verdict=yes
  if ! patch --strip=1 --silent --no-backup-if-mismatch <"$root/tests/mutations/$name.patch" >"$work/$name.log" 2>&1; then
    verdict='NO: the patch does not apply'
  elif ! cmake --build build -j "$(nproc)" --target "$target" >"$work/$name.build.log" 2>&1; then
    verdict='NO: it does not compile'
  elif run "$name"; then
    verdict='NO: the test passes'
  fi
  # Copied without their times: what was built from the bug is older.
  for file in "${files[@]}"; do cp "$root/$file" "$copy/$file"; done
  [ "$verdict" = yes ] || survived=$((survived + 1))
  printf '%-28s %-22s %-46s %s\n' "$name" "$verdict" "$target $filter" "$(field "$name" What)"
done
printf '%d bugs, %d caught\n' "${#names[@]}" $((${#names[@]} - survived))
[ "$survived" -eq 0 ]
