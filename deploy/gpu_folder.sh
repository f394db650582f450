#!/usr/bin/env bash
# Builds the programs, the benchmark and the GPU's test suites, and puts them with their libraries into one folder that
# runs on a GPU machine where nothing of ours is installed, wherever the folder lies; the bundle of the tests' golden
# files, too.
#
#   deploy/gpu_folder.sh FOLDER              then carry FOLDER to the GPU machine, and there
#   FOLDER/gpu_suites.sh FOLDER              tests it (`ctest -L gpu`)
#   python3 FOLDER/tests/gpu_job.py FOLDER MODEL.gguf TRAIN.jsonl HELD_OUT.jsonl      runs jobs through the whole system
#   FOLDER/longhaul-bench train --device cuda --shape qwen3-8b --batch 2 --tokens 2048 --rank 16
#   FOLDER/longhaul-worker --scheduler HOST:7070 --state-dir /var/lib/longhaul --models /models
set -euo pipefail

if [ $# -ne 1 ]; then
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$root"
programs="longhaul longhauld longhaul-worker longhaul-train longhaul-bench"
suites="kernels_cuda_test cuda_fused_test cuda_engine_test cuda_libs_test"
cmake --preset dev -DLONGHAUL_CUDA=ON
# shellcheck disable=SC2086
cmake --build --preset dev --target $(for p in $programs $suites; do echo "bin/$p"; done)
# shellcheck disable=SC2046
bash deploy/bundle_cuda.sh "$folder" $(for p in $programs $suites; do echo "build/dev/bin/$p"; done)
cp tests/gpu_suites.sh "$folder/"
for file in tests/golden/nf4_cuda.safetensors tests/gpu_job.py tests/hold_gpu_memory.py tests/e2e/harness.py deploy/demo/job.yaml; do
  install -D --mode=644 "$file" "$folder/$file"
done
