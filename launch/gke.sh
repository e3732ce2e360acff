#!/usr/bin/env bash
# Starts a run on TPU slices of GKE; see launch/README.md.
#
#   NAME=mine IMAGE=REGISTRY/rcmed:1 WORKDIR=gs://BUCKET/mine \
#     ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x4 HOSTS=4 \
#     launch/gke.sh --config.data.index=/data/index.json
#
# Arguments go to `rcmed train`. DRY_RUN=1 prints the manifest only.
set -euo pipefail

: "${NAME:?set NAME, of the JobSet}"
: "${IMAGE:?set IMAGE, which holds rcmed-jax[tpu,gcs]}"
: "${WORKDIR:?set WORKDIR, gs://BUCKET/RUN or a mounted folder all pods see}"
: "${ACCELERATOR:?set ACCELERATOR, as the node pool is labelled, such as tpu-v5-lite-podslice}"
: "${TOPOLOGY:?set TOPOLOGY of a slice, such as 4x4}"
: "${HOSTS:?set HOSTS, the machines of a slice}"
CHIPS=${CHIPS:-4}                  # of a machine
SLICES=${SLICES:-1}
CONFIG=${CONFIG:-configs/finetune.py}
RESUME=${RESUME:-auto}             # auto, never or required
SPOT=${SPOT:-0}                    # 1: on machines that may be taken away
MAX_RESTARTS=${MAX_RESTARTS:-10}   # after failures; being stopped is none
GRACE_S=${GRACE_S:-300}            # from SIGTERM to SIGKILL
DRY_RUN=${DRY_RUN:-0}
export NAME IMAGE ACCELERATOR TOPOLOGY HOSTS CHIPS SLICES SPOT MAX_RESTARTS GRACE_S

for variable in HOSTS CHIPS SLICES MAX_RESTARTS GRACE_S; do
  if ! [[ ${!variable} =~ ^[0-9]+$ ]]; then
    echo "$variable=${!variable}: expected a number" >&2
    exit 2
  fi
done

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
manifest=$(
  python3 -c '
import json, os, string, sys
file, *told = sys.argv[1:]
lines = open(file, encoding="utf-8").read().splitlines(keepends=True)
if os.environ["SPOT"] != "1":
  lines = [line for line in lines if "only with SPOT=1" not in line]
values = {**os.environ, "ARGS": json.dumps(told)}
print(string.Template("".join(lines)).substitute(values), end="")
' "$folder/gke_jobset.yaml" \
    --config="$CONFIG" --workdir="$WORKDIR" --resume="$RESUME" \
    --config.mesh.slice="$SLICES" "$@"
)
if [[ $DRY_RUN == 1 ]]; then
  echo "$manifest"
else
  kubectl apply --filename=- <<<"$manifest"
fi
