#!/usr/bin/env bash
# `make cluster-demo`: a cluster of two nodes on this machine with token authentication, and what becomes of three jobs:
# a run whose actors and figures the cluster tells while it goes on and whose folder comes back to OUT, a run that fails,
# and one without the token. Ends with 0 if all is as it should.
#
#   launch/cluster_demo.sh OUT
set -euo pipefail
out=${1:?where to? launch/cluster_demo.sh OUT}
here=$(dirname "${BASH_SOURCE[0]}")
unset RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH

DIR=$(mktemp -d "${TMPDIR:-/tmp}/parablock-XXXXXX")
export DIR
"$here/local_cluster.sh" 2 2 >"$DIR/cluster.log" 2>&1 &
cluster=$!
trap 'kill -TERM "$cluster" 2>/dev/null; wait "$cluster" || true; tail -n 1 "$DIR/cluster.log"' EXIT
until grep -q "^Ctrl-C" "$DIR/cluster.log"; do
    kill -0 "$cluster" 2>/dev/null || { cat "$DIR/cluster.log" >&2; exit 1; }
    sleep 0.5
done
cat "$DIR/cluster.log"

address=http://127.0.0.1:${DASHBOARD_PORT:-8265}
submit=(parablock submit "$here/../configs/quickstart.yaml" --address "$address")

failed_with() { # CODE COMMAND…
    local expected=$1 code=0
    shift
    "$@" || code=$?
    [ "$code" = "$expected" ] || { echo "exit code $code, and it should be $expected" >&2; exit 1; }
    echo "exit code $code, as it should be"
}

echo "== a run, watched, its folder brought back"
# Enough rounds that Ray, which collects figures every ten seconds, tells some before it ends.
"${submit[@]}" method.rounds=40 --token-path "$DIR/token" --follow --fetch "$out" &
run=$!
python "$here/monitoring/figures.py" "$address" "$DIR/token" 1800 &
figures=$!
wait -n "$run" "$figures"
kill -0 "$figures" 2>/dev/null && { kill "$figures"; echo "the run ended before it told its figures" >&2; exit 1; }
wait "$figures"
wait "$run"
test -s "$out/summary.json"
echo "== a run that fails"
failed_with 1 "${submit[@]}" method.rounds=2 method.lr=1.0e+30 --token-path "$DIR/token" --follow
echo "== without the token"
failed_with 2 "${submit[@]}"
