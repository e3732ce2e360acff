#!/usr/bin/env bash
# Trains on a TPU of its own: asks for it, waits, sets it up, runs, and starts
# again where the TPU was taken away; see launch/README.md.
#
#   NAME=mine ZONE=us-west4-a ACCELERATOR=v5litepod-64 WORKDIR=gs://BUCKET/mine \
#     launch/tpu_vm.sh --config.data.index=/mnt/data/index.json
#
# Arguments go to `rcmed train`, which runs on the machines by itself: where
# this script, or its connection, ends, the same command looks at it again. The
# TPU is deleted once the run has ended, unless KEEP=1.
set -euo pipefail

: "${NAME:?set NAME, of the TPU}"
: "${ZONE:?set ZONE, such as us-west4-a}"
: "${ACCELERATOR:?set ACCELERATOR, such as v5litepod-64}"
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
GRACE_S=${GRACE_S:-300}            # for the others, once one machine failed
KEEP=${KEEP:-0}
COMPILED=${COMPILED:-$WORKDIR/compiled} # takes compiled programs
# What brings the data to a fresh machine, after SETUP.
DATA_SETUP=${DATA_SETUP:-true}
PATIENCE=20 # questions without an answer
# Exit codes after which the same command goes on: a bucket that did not answer,
# saved and stopped, another process gone, the watchdog, the service of JAX,
# killed; and a machine that started again.
AGAIN=" 69 75 76 77 134 137 143 gone "

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
queue=(gcloud compute tpus queued-resources)
where=(--project="$PROJECT" --zone="$ZONE" --quiet)
scratch=$(mktemp -d)
made=0 # 1: there may be a TPU that costs

# A machine prints `rcmed HOST ...` where we must know: of several machines
# gcloud drops the exit codes, and after a broken connection (255) it gives the
# command again, so that each command may come twice.

ended() {
  local code=$?
  rm -rf "$scratch"
  if ((made)); then
    cat >&2 <<END
The TPU $NAME may still be there, and cost; what runs on it goes on. The same
command looks at it again. This deletes it:
  ${queue[*]} delete $NAME ${where[*]} --force
END
  fi
  exit "$code"
}
trap ended EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

state() { # of the request; NONE: there is none; UNKNOWN: no answer
  local told
  if told=$("${queue[@]}" describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>"$scratch/error"); then
    echo "${told:-UNKNOWN}"
  elif grep --quiet --extended-regexp 'NOT_FOUND|was not found|code=404' \
    "$scratch/error"; then
    echo NONE
  else
    cat "$scratch/error" >&2
    echo UNKNOWN
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
  made=1
  "${queue[@]}" create "$NAME" "${where[@]}" "${told[@]}" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME"
}

remove() {
  "${queue[@]}" delete "$NAME" "${where[@]}" --force
  made=0
}

wait_for() { # until the TPU is there; 1: it will not be
  local now unknown=0
  while true; do
    now=$(state)
    case $now in
      ACTIVE)
        made=1
        return 0
        ;;
      NONE)
        made=0
        echo "the TPU is gone before it was ready" >&2
        return 1
        ;;
      FAILED | SUSPENDED)
        made=1
        echo "the TPU is $now before it was ready" >&2
        return 1
        ;;
      UNKNOWN)
        if ((++unknown > PATIENCE)); then
          echo "nobody says what the TPU does; is gcloud logged in?" >&2
          exit 1
        fi
        ;;
      *)
        made=1
        unknown=0
        echo "waiting for the TPU: $now" >&2
        ;;
    esac
    sleep "$POLL_S"
  done
}

nodes=("$NAME")
if ((SLICES > 1)); then
  nodes=()
  for ((index = 0; index < SLICES; index++)); do
    nodes+=("$NAME-$index")
  done
fi

machines() { # how many there are, in all slices
  local one addresses count tries
  for ((tries = 0; tries <= PATIENCE; tries++)); do
    count=0
    for one in "${nodes[@]}"; do
      addresses=$(gcloud compute tpus tpu-vm describe "$one" "${where[@]}" \
        --flatten='networkEndpoints[]' \
        --format='value(networkEndpoints.ipAddress)') || addresses=""
      if [[ -z $addresses ]]; then
        count=0
        break
      fi
      count=$((count + $(grep --count . <<<"$addresses")))
    done
    if ((count)); then
      echo "$count"
      return
    fi
    sleep "$POLL_S"
  done
  echo "nobody says how many machines there are" >&2
  return 1
}

ask() ( # what the machines print for some lines of bash; silent ones: nothing
  # What bash starts with & does not hear Ctrl-C.
  trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM
  for one in "${nodes[@]}"; do
    gcloud compute tpus tpu-vm ssh "$one" "${where[@]}" --worker=all \
      --command="bash -c $(printf %q "$1")" </dev/null &
  done
  wait
)

answers() { # of each machine the last line that it printed for us
  awk '$1 == "rcmed" { last[$2] = $0 } END { for (host in last) print last[host] }'
}

LOOK='cd rcmed-runs 2>/dev/null
run=$(ls 2>/dev/null | tail -n 1)
if [ -z "$run" ]; then state=none
elif [ -e "$run/code" ]; then state=$(cat "$run/code")
elif [ ! -e "$run/pid" ] && [ -n "$(find "$run" -maxdepth 0 -mmin -1)" ]
then state=running # it just begins
elif flock --nonblock "$run/lock" true; then
  if [ -e "$run/code" ]; then state=$(cat "$run/code"); else state=gone; fi
else state=running
fi
[ -z "$run" ] || tail -n 1 "$run/log" 2>/dev/null | sed "s/^/  $(hostname): /"
seen=
[ ! -e "$run/seen" ] || seen=seen
echo "rcmed $(hostname) ${run:-none} $state $seen"'

existing() { # the run on the machines whose end nobody has seen, if any
  local count="$1" lines newest tries
  for ((tries = 0; tries <= PATIENCE; tries++)); do
    lines=$(ask "$LOOK" | answers)
    newest=$(awk '$3 != "none" { print $3 }' <<<"$lines" | sort | tail -n 1)
    if [[ -n $newest ]] || (($(grep --count . <<<"$lines") >= count)); then
      if ! grep --quiet " $newest .* seen$" <<<"$lines"; then
        echo "$newest"
      fi
      return
    fi
    sleep "$POLL_S"
  done
  cat >&2 <<'END'
Not all machines answer. For several, gcloud wants the key in an agent:
  eval "$(ssh-agent)"; ssh-add ~/.ssh/google_compute_engine
END
  return 1
}

prepare() { # makes all machines able to run `rcmed`; 1: one of them is not
  local one told ready count="$1"
  if [[ -z ${SETUP:-} ]]; then
    if [[ -n $(git -C "$folder" status --porcelain) ]]; then
      echo "only what is committed goes to the machines" >&2
    fi
    git -C "$folder" archive --format=tar.gz \
      --output="$scratch/rcmed.tar.gz" HEAD || return 1
    for one in "${nodes[@]}"; do
      gcloud compute tpus tpu-vm scp "$scratch/rcmed.tar.gz" \
        "$one:rcmed.tar.gz" "${where[@]}" --worker=all || true
    done
  fi
  # uv brings the Python that the image lacks: it has 3.10.
  local setup=${SETUP:-'set -e
mkdir -p rcmed
tar -xzf rcmed.tar.gz -C rcmed
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.12 rcmed-env
python3 -m uv pip install --quiet --python rcmed-env/bin/python "./rcmed[tpu,gcs]"'}
  for ((one = 0; one < 3; one++)); do
    told=$(ask "mkdir -p rcmed
( flock 9; bash -c $(printf %q "$setup") && bash -c $(printf %q "$DATA_SETUP") ) \
  9>.rcmed-setup >rcmed-setup.log 2>&1 && state=ready || state=failed
[ \$state = ready ] || tail -n 20 rcmed-setup.log | sed \"s/^/  \$(hostname): /\"
echo \"rcmed \$(hostname) setup \$state\"")
    grep -v '^rcmed ' <<<"$told" >&2 || true
    told=$(answers <<<"$told")
    ready=$(grep --count ' ready$' <<<"$told" || true)
    if ((ready >= count)); then
      return 0
    fi
    if grep --quiet ' failed$' <<<"$told"; then
      echo "SETUP or DATA_SETUP failed" >&2
      return 1
    fi
    echo "$ready of $count machines are set up; again" >&2
  done
  exit 1
}

begin() { # starts a run on all machines where it is not
  ask "mkdir -p rcmed rcmed-runs; mkdir rcmed-runs/$1 2>/dev/null || exit 0
cd rcmed
setsid nohup flock --close ../rcmed-runs/$1/lock bash -c $(printf %q "
$2 >../rcmed-runs/$1/log 2>&1 &
echo \$! >../rcmed-runs/$1/pid
wait \$!
echo \$? >../rcmed-runs/$1/part
mv ../rcmed-runs/$1/part ../rcmed-runs/$1/code") </dev/null >/dev/null 2>&1 &" \
    >&2
}

follow() { # waits for the end of a run; sets `code`, LOST: the TPU is gone
  local run="$1" command="$2" count="$3" since="" told found lines now
  while true; do
    told=$(ask "$LOOK")
    grep -v '^rcmed ' <<<"$told" >&2 || true
    lines=$(answers <<<"$told")
    found=$(awk -v run="$run" '$3 == run { print $4 }' <<<"$lines")
    local answered running=0 missing one failed=""
    answered=$(grep --count . <<<"$lines" || true)
    missing=$(awk -v run="$run" '$3 != run' <<<"$lines" | grep --count . || true)
    code=0
    for one in $found; do
      case $one in
        running) running=$((running + 1)) ;;
        0) ;;
        *)
          failed=1
          # A fault that would come again tells more than what it led to.
          if [[ $code == 0 || ($AGAIN == *" $code "* && $AGAIN != *" $one "*) ]]
          then
            code=$one
          fi
          ;;
      esac
    done
    if ((answered < count)); then
      now=$(state)
      echo "$answered of $count machines answer, the TPU is $now" >&2
      case $now in
        ACTIVE | UNKNOWN) ;; # a broken connection says nothing of the run
        *)
          code=LOST
          return
          ;;
      esac
    elif ((missing == 0 && running == 0)); then
      return
    fi
    if [[ -n $failed ]]; then
      since=${since:-$SECONDS}
      if ((SECONDS - since >= GRACE_S)); then
        echo "the others did not leave within $GRACE_S s" >&2
        ask "kill -KILL \$(cat rcmed-runs/$run/pid)" >&2
        if ((missing)); then
          code=gone # not all were there, which the next start may change
        fi
        return
      fi
    elif ((missing)); then
      begin "$run" "$command"
    fi
    sleep "$POLL_S"
  done
}

train="env JAX_COMPILATION_CACHE_DIR=$(printf %q "$COMPILED")"
train+=" ${RCMED:-../rcmed-env/bin/python -m rcmed_jax} train"
for argument in --config="$CONFIG" --workdir="$WORKDIR" \
  --config.mesh.slice="$SLICES" "$@"; do
  train+=" $(printf %q "$argument")"
done

restarts=0
prepared=0
while true; do
  code=gone
  now=$(state)
  case $now in
    SUSPENDING | DELETING)
      sleep "$POLL_S"
      continue
      ;;
    FAILED | SUSPENDED)
      remove
      now=NONE
      ;;
  esac
  if [[ $now == NONE ]]; then
    create || ((restarts)) # the first time it is the request that is wrong
    prepared=0
  fi
  if wait_for; then
    count=$(machines)
    run=$(existing "$count")
    if [[ -n $run ]]; then
      echo "looking at run $run, which is there already" >&2
    else
      if ((!prepared)) && ! prepare "$count"; then
        code=1
        break
      fi
      run=$(date -u +%Y%m%d-%H%M%S)-$restarts
      begin "$run" "$train --resume=$RESUME"
    fi
    prepared=1
    follow "$run" "$train --resume=$RESUME" "$count"
    if [[ $code != LOST ]]; then
      echo "the run left with $code" >&2
      if [[ $code != 0 ]]; then
        ask "tail -n 50 rcmed-runs/$run/log | sed \"s/^/  \$(hostname): /\"" >&2
      fi
      ask "touch rcmed-runs/$run/seen" >&2
      if [[ $code == 0 || $AGAIN != *" $code "* ]]; then
        break # trained, or a failure that would come again
      fi
      if [[ $code == gone ]]; then
        prepared=0 # what was mounted is not there after a boot
      fi
    fi
  fi
  if ((++restarts > MAX_RESTARTS)); then
    echo "given up after $MAX_RESTARTS restarts" >&2
    break
  fi
  RESUME=auto
  sleep "$POLL_S"
done

if [[ ! $code =~ ^[0-9]+$ ]]; then
  code=137
fi
if [[ $KEEP != 1 && $(state) != NONE ]]; then
  remove
fi
exit "$code"
