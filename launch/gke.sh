#!/usr/bin/env bash
# Starts a run on TPU slices of GKE; see launch/README.md.
#
#   NAME=mine IMAGE=REGISTRY/rcmed:1 WORKDIR=gs://BUCKET/mine \
#     ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=8x8 HOSTS=16 \
#     DATA_BUCKET=BUCKET SERVICE_ACCOUNT=trainer \
#     launch/gke.sh --config.data.index=/data/index.json
#
# Arguments go to `rcmed train`. DRY_RUN=1 prints the manifest only.
set -euo pipefail

: "${NAME:?set NAME, of the JobSet}"
: "${IMAGE:?set IMAGE, which holds rcmed-jax[tpu,gcs]}"
: "${WORKDIR:?set WORKDIR, gs://BUCKET/RUN or a mounted folder all pods see}"
: "${ACCELERATOR:?set ACCELERATOR, as the node pool is labelled, such as tpu-v5-lite-podslice}"
: "${TOPOLOGY:?set TOPOLOGY of a slice, such as 8x8}"
: "${HOSTS:?set HOSTS, the machines of a slice}"
CHIPS=${CHIPS:-4}                  # of a machine
SLICES=${SLICES:-1}
CONFIG=${CONFIG:-configs/finetune.py}
RESUME=${RESUME:-auto}             # auto, never or required
SPOT=${SPOT:-0}                    # 1: on machines that may be taken away
MAX_RESTARTS=${MAX_RESTARTS:-10}   # after failures; being stopped is none
GRACE_S=${GRACE_S:-300}            # from SIGTERM to SIGKILL; less on Spot
TTL_S=${TTL_S:-604800}             # a JobSet that ended stays this long
DATA_BUCKET=${DATA_BUCKET:-}       # mounted as /data, to be read
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-} # of Kubernetes, that may use the buckets
COMPILED=${COMPILED:-$WORKDIR/compiled} # takes compiled programs
DRY_RUN=${DRY_RUN:-0}
LAUNCH=$(date -u +%Y%m%d-%H%M%S)-$RANDOM
export NAME IMAGE ACCELERATOR TOPOLOGY HOSTS CHIPS SLICES SPOT MAX_RESTARTS \
  GRACE_S TTL_S DATA_BUCKET SERVICE_ACCOUNT COMPILED LAUNCH

for variable in HOSTS CHIPS SLICES MAX_RESTARTS GRACE_S TTL_S; do
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
lines = []
for line in open(file, encoding="utf-8"):
  line, _, name = line.rstrip().partition(" # only with ")
  if not name or os.environ[name] not in ("", "0"):
    lines.append(line + "\n")
values = {**os.environ, "ARGS": json.dumps(told)}
print(string.Template("".join(lines)).substitute(values), end="")
' "$folder/gke_jobset.yaml" \
    --config="$CONFIG" --workdir="$WORKDIR" --resume="$RESUME" \
    --config.mesh.slice="$SLICES" "$@"
)
if [[ $DRY_RUN == 1 ]]; then
  echo "$manifest"
  exit
fi

# What has ended keeps its name: applied again, nothing would start.
ended=$(kubectl get jobset "$NAME" --ignore-not-found \
  --output=jsonpath='{.metadata.name} {.status.terminalState}')
case $ended in
  "") ;;
  "$NAME Completed" | "$NAME Failed")
    echo "$ended: deleted, to start again" >&2
    kubectl delete jobset "$NAME" --wait
    ;;
  *)
    echo "JobSet $NAME is there and has not ended; to end it, so that it saves:" \
      "kubectl delete jobset $NAME" >&2
    exit 1
    ;;
esac
kubectl apply --filename=- <<<"$manifest"
