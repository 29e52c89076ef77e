#!/usr/bin/env bash
# Train on one Cloud TPU slice without Kubernetes. Each step runs on all hosts of the slice:
#
#   export ZONE=us-east5-a BUCKET=my-bucket
#   deploy/tpu_vm.sh create            # the slice: v5p-128 is v5p:4x4x4, 64 chips on 16 hosts
#   deploy/tpu_vm.sh install           # Python 3.12, because the images have 3.10; this project
#   deploy/tpu_vm.sh data              # gs://BUCKET/prepared and gs://BUCKET/tokenizer to every host's disk
#   deploy/tpu_vm.sh train --data.sources='[{"name": "text", "path": "prepared/text", "eval_fraction": 0.001}]'
#   deploy/tpu_vm.sh log               # of the first host; Ctrl-C leaves the run alone
#   deploy/tpu_vm.sh stop              # SIGTERM: the step is finished and saved; `train` resumes it
#   deploy/tpu_vm.sh delete
#
# Arguments behind `train` are options of train.py.
set -euo pipefail

NAME=${NAME:-qwen3}
ZONE=${ZONE:?the zone of the slice, such as us-east5-a}
BUCKET=${BUCKET:?the name of a bucket in the same region}
TYPE=${TYPE:-v5p-128}                    # gcloud compute tpus accelerator-types list --zone=ZONE
VERSION=${VERSION:-v2-alpha-tpuv5}       # v5e: v2-alpha-tpuv5-lite, v6e: v2-alpha-tpuv6e, v4: tpu-ubuntu2204-base
CONFIG=${CONFIG:-configs/scale/qwen3-30b-a3b.yaml}
RUN_DIR=${RUN_DIR:-gs://$BUCKET/runs/$(basename "$CONFIG" .yaml)}
# What the hosts clone: by default where this checkout was cloned from, by https.
origin=$(git -C "$(dirname "$0")" config --get remote.origin.url || true)
REPOSITORY=${REPOSITORY:-$(sed -E 's#^(ssh://)?git@([^:/]+)[:/]#https://\2/#' <<<"$origin")}

tpu() { # create, delete, ssh
  local action=$1
  shift
  gcloud compute tpus tpu-vm "$action" "$NAME" --zone="$ZONE" "$@"
}

everywhere() { tpu ssh --worker=all --command="$1"; }

step=${1:?create, install, data, train, log, stop or delete}
shift
case $step in
  create)
    # The default scopes cannot write to buckets. --spot: cheaper, and taken away at any time; `create` and `train` go on.
    tpu create --accelerator-type="$TYPE" --version="$VERSION" --scopes=https://www.googleapis.com/auth/cloud-platform "$@"
    ;;
  install)
    if [[ $REPOSITORY != https://* ]]; then
      echo "REPOSITORY is '$REPOSITORY'; set it to the https:// URL of this project, which every host clones." >&2
      exit 2
    fi
    everywhere "set -e
      test -d qwen3-jax || GIT_TERMINAL_PROMPT=0 git clone --depth 1 '$REPOSITORY' qwen3-jax
      python3 -m pip install --quiet --user uv
      cd qwen3-jax
      ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv
      ~/.local/bin/uv pip install --quiet --python .venv/bin/python -e '.[tpu,gcs,data]'"
    ;;
  data)
    everywhere "set -e
      cd qwen3-jax
      for folder in prepared tokenizer; do
        mkdir -p \$folder
        gcloud storage rsync --recursive 'gs://$BUCKET/'\$folder \$folder
      done"
    ;;
  train)
    # A unit of systemd, so that the run outlives this terminal.
    options=$(printf ' %q' --config "$CONFIG" --run_dir "$RUN_DIR" --tokenizer.path=tokenizer "$@")
    everywhere "sudo systemd-run --unit=qwen3 --collect --uid=\$USER --working-directory=\$HOME/qwen3-jax \
      --property=TimeoutStopSec=300 --setenv=HOME=\$HOME \$HOME/qwen3-jax/.venv/bin/python train.py$options"
    ;;
  log) tpu ssh --worker=0 --command='journalctl --unit=qwen3 --follow --lines=100' ;;
  stop) everywhere 'sudo systemctl stop qwen3' ;;
  delete) tpu delete "$@" ;;
  *)
    echo "there is no step '$step'; the steps are create, install, data, train, log, stop and delete." >&2
    exit 2
    ;;
esac
