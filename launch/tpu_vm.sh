#!/usr/bin/env bash
# Trains on a TPU of its own: asks for it, waits, sets it up, runs, and starts
# again where the TPU was taken away; see launch/README.md.
#
#   NAME=mine ZONE=us-west4-a ACCELERATOR=v5litepod-16 WORKDIR=gs://BUCKET/mine \
#     launch/tpu_vm.sh --config.data.index=/mnt/data/index.json
#
# Arguments go to `rcmed train`. The TPU is deleted at the end unless KEEP=1.
set -euo pipefail

: "${NAME:?set NAME, of the TPU}"
: "${ZONE:?set ZONE, such as us-west4-a}"
: "${ACCELERATOR:?set ACCELERATOR, such as v5litepod-16}"
: "${WORKDIR:?set WORKDIR, gs://BUCKET/RUN: the disks of a TPU go with it}"
PROJECT=${PROJECT:-$(gcloud config get-value project 2>/dev/null || true)}
: "${PROJECT:?set PROJECT, or gcloud config set project}"
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} # image of the machines
CONFIG=${CONFIG:-configs/finetune.py}
RESUME=${RESUME:-auto}             # auto, never or required
SPOT=${SPOT:-0}                    # 1: may be taken away
SLICES=${SLICES:-1}
MAX_RESTARTS=${MAX_RESTARTS:-20}
POLL_S=${POLL_S:-30}
KEEP=${KEEP:-0}
# What makes a fresh machine able to run `rcmed`.
SETUP=${SETUP:-python3 -m pip install --quiet 'rcmed-jax[tpu,gcs]'}
RCMED=${RCMED:-python3 -m rcmed_jax}
STOPPED=75                         # exit code: saved, start it again

queue=(gcloud compute tpus queued-resources)
where=(--project="$PROJECT" --zone="$ZONE" --quiet)

state() { # of the request; empty where there is none
  "${queue[@]}" describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

remove() {
  if [[ -n $(state) ]]; then
    "${queue[@]}" delete "$NAME" "${where[@]}" --force
  fi
}

create() {
  local told=(--node-id="$NAME")
  if ((SLICES > 1)); then
    told=(--node-prefix="$NAME" --node-count="$SLICES")
  fi
  if ((SPOT)); then
    told+=(--spot)
  fi
  "${queue[@]}" create "$NAME" "${where[@]}" "${told[@]}" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME"
}

wait_for() {
  local now
  while true; do
    now=$(state)
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING | "")
        echo "the TPU is ${now:-gone} before it was ready" >&2
        return 1
        ;;
    esac
    echo "waiting for the TPU: $now" >&2
    sleep "$POLL_S"
  done
}

everywhere() { # runs a command line on all machines of all slices
  local nodes=("$NAME") pids=() code=0 index one
  if ((SLICES > 1)); then
    nodes=()
    for ((index = 0; index < SLICES; index++)); do
      nodes+=("$NAME-$index")
    done
  fi
  for one in "${nodes[@]}"; do
    gcloud compute tpus tpu-vm ssh "$one" "${where[@]}" --worker=all \
      --command="$1" &
    pids+=($!)
  done
  for one in "${pids[@]}"; do
    wait "$one" || code=$?
  done
  return "$code"
}

train="$RCMED train"
for argument in --config="$CONFIG" --workdir="$WORKDIR" \
  --config.mesh.slice="$SLICES" "$@"; do
  train+=" $(printf %q "$argument")"
done

restarts=0
while true; do
  code=1
  if [[ -z $(state) ]]; then
    create
  fi
  if wait_for; then
    code=0
    everywhere "$SETUP" && everywhere "$train --resume=$RESUME" || code=$?
    now=$(state)
    if [[ $now == ACTIVE && $code != "$STOPPED" ]]; then
      break # trained, or a failure that would come again
    fi
    echo "stopped with $code, the TPU is ${now:-gone}" >&2
  fi
  if ((++restarts > MAX_RESTARTS)); then
    echo "given up after $MAX_RESTARTS restarts" >&2
    break
  fi
  RESUME=auto
  if [[ $(state) != ACTIVE ]]; then
    remove
  fi
done

if [[ $KEEP != 1 ]]; then
  remove
fi
exit "$code"
