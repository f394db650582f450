#!/usr/bin/env bash
# Makes the golden vectors again in a folder of its own and compares every byte with those here.
#   bash tests/golden/rerun.sh [PYTHON]     needs the packages that CONTRIBUTING.md lists
set -euo pipefail
python=${1:-python3}
golden=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tests"
cp -r "$golden" "$work/tests/golden"
cd "$work/tests/golden"
# What no script makes again stays out of the count: databases, reports, and a subset that a GPU quantised.
made=$(find . -type f \( -name '*.gguf' -o -name '*.safetensors' -o -name '*.json' \) ! -name 'nf4_cuda.safetensors' | sort)
# shellcheck disable=SC2086
rm $made
for script in make_golden_data make_golden_formats make_golden_engine; do
  "$python" "$script.py" >"$work/$script.log" 2>&1 || { cat "$work/$script.log" >&2; exit 1; }
done
same=0
for file in $made; do
  cmp "$file" "$golden/$file"
  same=$((same + 1))
done
"$python" -c "
import bitsandbytes, gguf, numpy, peft, tokenizers, torch, transformers
for m in (torch, transformers, peft, bitsandbytes, tokenizers, numpy): print(m.__name__, m.__version__, end=', ')"
echo "$same files made again, every byte the same"
