#!/usr/bin/env bash
# Starts a run on a cluster that xpk manages; see launch/README.md.
#
#   CLUSTER=mine PROJECT=... ZONE=us-east5-a NAME=first TPU_TYPE=v5litepod-64 \
#     IMAGE=REGISTRY/rcmed:1 WORKDIR=gs://BUCKET/first \
#     launch/xpk.sh --config.data.index=/data/index.json
#
# Arguments go to `rcmed train`. DRY_RUN=1 prints the manifest only.
set -euo pipefail

: "${CLUSTER:?set CLUSTER, as xpk cluster create named it}"
: "${PROJECT:?set PROJECT}"
: "${ZONE:?set ZONE of the cluster}"
: "${NAME:?set NAME, of the workload}"
: "${TPU_TYPE:?set TPU_TYPE of a slice, such as v5litepod-64}"
: "${IMAGE:?set IMAGE, which holds rcmed-jax[tpu,gcs]}"
: "${WORKDIR:?set WORKDIR, gs://BUCKET/RUN or a mounted folder all pods see}"
SLICES=${SLICES:-1}
CONFIG=${CONFIG:-configs/finetune.py}
RESUME=${RESUME:-auto}             # auto, never or required
# Of the JobSet, for whatever reason: also for a run that stopped and saved.
MAX_RESTARTS=${MAX_RESTARTS:-10}
GRACE_S=${GRACE_S:-300}            # from SIGTERM to SIGKILL; less on Spot
SPOT=${SPOT:-0}                    # 1: on machines that may be taken away
STORAGE=${STORAGE:-}               # that holds the data, as xpk storage knows it
COMPILED=${COMPILED:-$WORKDIR/compiled} # takes compiled programs
DRY_RUN=${DRY_RUN:-0}

# exec: the signal to save must reach Python, not a shell before it.
train="exec rcmed train"
for argument in --config="$CONFIG" --workdir="$WORKDIR" --resume="$RESUME" \
  --config.mesh.slice="$SLICES" "$@"; do
  train+=" $(printf %q "$argument")"
done

told=(
  --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE"
  --workload="$NAME" --tpu-type="$TPU_TYPE" --num-slices="$SLICES"
  --docker-image="$IMAGE" --command="$train"
  --env=JAX_COMPILATION_CACHE_DIR="$COMPILED"
  # A run that this launch began is no other's: --resume=never goes on with it.
  --env=RCMED_LAUNCH="$(date -u +%Y%m%d-%H%M%S)-$RANDOM"
  --max-restarts="$MAX_RESTARTS"
  --termination-grace-period-seconds="$GRACE_S"
  # Any other code but 42 and 127 to 255 ends the workload: a bucket that did
  # not answer, stopped and saved, another process gone, the watchdog.
  --restart-on-exit-codes="69,75,76,77"
)
if [[ -n $STORAGE ]]; then
  told+=(--storage="$STORAGE")
fi
if [[ $SPOT == 1 ]]; then
  told+=(--spot)
fi
if [[ $DRY_RUN == 1 ]]; then
  told+=(--dry-run --skip-validation)
fi
xpk workload create "${told[@]}"
