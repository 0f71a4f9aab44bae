#!/usr/bin/env bash
# A run as a job of a Ray cluster that is there, followed to its end; its run folder is brought back. Exit code: the job's.
#
#   ADDRESS=http://head:8265 TOKEN_PATH=token launch/ray_job.sh configs/my.yaml [key=value …]
#
# A dashboard that listens on the head only: ssh -N -L 8265:127.0.0.1:8265 head, and ADDRESS=http://127.0.0.1:8265.
set -euo pipefail

config=${1:?which config? launch/ray_job.sh CONFIG [key=value …]}
address=${ADDRESS:?where to? ADDRESS=http://head:8265}
folder=${FETCH:-runs/$(basename "$config" .yaml)-$(date +%Y%m%d-%H%M%S)}

exec parablock submit "$@" --address "$address" ${TOKEN_PATH:+--token-path "$TOKEN_PATH"} --follow --fetch "$folder"
