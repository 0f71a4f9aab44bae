#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, with token authentication, until Ctrl-C or SIGTERM:
#
#   launch/local_cluster.sh [NODES] [CPUS_PER_NODE]
#
# `ray` is that of the activated virtual environment, else of .venv here. Other clusters on this machine are left alone.
# Ports, and the folder of Ray's files and of the token, can be given: PORT, DASHBOARD_PORT, CLIENT_PORT, DIR.
set -euo pipefail

nodes=${1:-2} cpus=${2:-2}
port=${PORT:-6379}                     # of the head: workers and drivers come here
dashboard_port=${DASHBOARD_PORT:-8265} # of the dashboard: jobs come here
client_port=${CLIENT_PORT:-10001}      # of Ray's own client, which we do not use
dir=${DIR:-$(mktemp -d "${TMPDIR:-/tmp}/parablock-XXXXXX")} # short: Ray's sockets lie in it, whose paths have limits
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

PATH=$PATH:$here/.venv/bin
command -v ray >/dev/null || { echo "no ray here: activate the virtual environment that has parablock-ray" >&2; exit 2; }
# Jobs start `python`: it must be the one that belongs to this ray.
PATH=$(dirname "$(command -v ray)"):$PATH
(umask 077 && mkdir -p "$dir")
export PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$dir/token RAY_USAGE_STATS_ENABLED=0
export RAY_free_objects_period_milliseconds=100 # docs/cluster.md
unset RAY_ADDRESS RAY_AUTH_TOKEN
rm -f "$RAY_AUTH_TOKEN_PATH" # one that was there would keep who may read it
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

groups=()
# shellcheck disable=SC2317 # the trap calls it
stop() {
    trap '' INT TERM
    # Every node is a process group of its own: no other cluster is touched, as `ray stop` would.
    for ((index = ${#groups[@]} - 1; index >= 0; index--)); do kill -TERM -- "-${groups[index]}" 2>/dev/null || true; done
    for group in "${groups[@]}"; do
        for _ in {1..100}; do kill -0 -- "-$group" 2>/dev/null || break; sleep 0.2; done
        kill -KILL -- "-$group" 2>/dev/null || true
    done
    echo "stopped"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_node() { # LOG ARGUMENT…: one node, and wait until it is there
    local log=$dir/$1.log
    shift
    : >"$log"
    # Nodes of one machine must not share the usual ports. 0 is any free one, of which Ray 2.52 tells jobs another for its
    # agents: theirs come after the dashboard's.
    setsid ray start --block --num-cpus="$cpus" --min-worker-port=0 --max-worker-port=0 \
        --dashboard-agent-listen-port=$((dashboard_port + 1 + ${#groups[@]})) "$@" >"$log" 2>&1 </dev/null &
    groups+=($!)
    until grep -q "Ray runtime started" "$log"; do
        kill -0 "${groups[-1]}" 2>/dev/null || { cat "$log" >&2; exit 1; }
        sleep 0.2
    done
}

start_node head --head --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" \
    --ray-client-server-port="$client_port" --temp-dir="$dir/ray"
for ((index = 1; index < nodes; index++)); do start_node "node-$index" --address="127.0.0.1:$port"; done

url=http://127.0.0.1:$dashboard_port
until python -c 'import sys, urllib.error, urllib.request as u
try: u.urlopen(sys.argv[1] + "/api/version", timeout=5)
except urllib.error.HTTPError: pass # it asks for the token: it is up' "$url" 2>/dev/null; do sleep 0.5; done
cat <<READY
$nodes node(s) with $cpus CPUs each: 127.0.0.1:$port
dashboard: $url (asks for the token)
token: $RAY_AUTH_TOKEN_PATH
parablock submit configs/quickstart.yaml --address $url --token-path $RAY_AUTH_TOKEN_PATH --follow
Ctrl-C stops it
READY
wait -n || true
echo "a node ended by itself; logs: $dir" >&2
exit 1
