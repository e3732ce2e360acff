#!/usr/bin/env bash
# Starts a run on a cluster that xpk manages; see launch/README.md.
#
#   CLUSTER=mine PROJECT=... ZONE=us-east5-a NAME=first TPU_TYPE=v5litepod-16 \
#     IMAGE=REGISTRY/rcmed:1 WORKDIR=gs://BUCKET/first \
#     launch/xpk.sh --config.data.index=/data/index.json
#
# Arguments go to `rcmed train`. DRY_RUN=1 prints the manifest only.
set -euo pipefail

: "${CLUSTER:?set CLUSTER, as xpk cluster create named it}"
: "${PROJECT:?set PROJECT}"
: "${ZONE:?set ZONE of the cluster}"
: "${NAME:?set NAME, of the workload}"
: "${TPU_TYPE:?set TPU_TYPE of a slice, such as v5litepod-16}"
: "${IMAGE:?set IMAGE, which holds rcmed-jax[tpu,gcs]}"
: "${WORKDIR:?set WORKDIR, gs://BUCKET/RUN or a mounted folder all pods see}"
SLICES=${SLICES:-1}
CONFIG=${CONFIG:-configs/finetune.py}
RESUME=${RESUME:-auto}             # auto, never or required
MAX_RESTARTS=${MAX_RESTARTS:-10}   # for whatever reason
GRACE_S=${GRACE_S:-300}            # from SIGTERM to SIGKILL
SPOT=${SPOT:-0}                    # 1: on machines that may be taken away
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
  --max-restarts="$MAX_RESTARTS"
  --termination-grace-period-seconds="$GRACE_S"
  --restart-on-exit-codes=75 # stopped and saved
)
if [[ $SPOT == 1 ]]; then
  told+=(--spot)
fi
if [[ $DRY_RUN == 1 ]]; then
  told+=(--dry-run --skip-validation)
fi
xpk workload create "${told[@]}"
