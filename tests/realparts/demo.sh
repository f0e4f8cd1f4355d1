#!/usr/bin/env bash
# The whole product on real input: builds; starts a TAP server with sample rows, a DALiuGE, a Prometheus and the
# service; registers seven sources; shows what happens until all is settled; stays up until Ctrl-C.
#
# DEMO_EXIT=1 ends with a summary, and with status 0 if everything came out as the sample archive says.
# DEMO_STATE (default .state/demo) is emptied first. DEMO_PROFILE=release builds optimised.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
. "$here/lib.sh"

state=${DEMO_STATE:-.state/demo}
project=wallaby_demo
patience=${DEMO_PATIENCE:-300}
# Of the sample archive: four finish, one has a rejected dataset, one block has no calibration file, one has no data.
sources=(HIPASSJ1318-21 HIPASSJ0039-14 HIPASSJ1305-20 HIPASSJ1321-19 HIPASSJ1245-00 HIPASSJ1250-20 HIPASSJ2359-59)
want_completed=4 want_failed=1 want_error=1 want_none=1

background=()
cleanup() {
    local rc=$? pid
    trap '' INT TERM
    say "stopping"
    for pid in "${background[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    stop_service
    "$here/down.sh" "$state" >/dev/null 2>&1 || say "not everything stopped: $here/down.sh $state"
    exit $rc
}

# --- The service ------------------------------------------------------------------------------------------------

build() {
    command -v cargo >/dev/null || fail "cargo is missing; install Rust from https://rustup.rs"
    command -v cc >/dev/null || apt_install gcc libc6-dev
    local flags=(--bin beampipe --locked)
    [[ ${DEMO_PROFILE:-dev} == dev ]] || flags+=(--release)
    cargo build "${flags[@]}"
}

beampipe() {
    local out=debug
    [[ ${DEMO_PROFILE:-dev} == dev ]] || out=release
    "target/$out/beampipe" "$@"
}

start_service() { # exports BEAMPIPE_URL and BEAMPIPE_KEY
    run=$state/service log=$state/service
    mkdir -p "$run/data"
    local out=debug
    [[ ${DEMO_PROFILE:-dev} == dev ]] || out=release
    export BEAMPIPE_URL=http://127.0.0.1:$API_PORT
    launch beampipe env BEAMPIPE_HTTP__LISTEN="127.0.0.1:$API_PORT" BEAMPIPE_WORK__TICK_SECONDS=1 BEAMPIPE_METRICS__LISTEN="127.0.0.1:$METRICS_PORT" \
        BEAMPIPE_STATE_DIR="$run/data" "$PWD/target/$out/beampipe" serve
    wait_for beampipe answers "$BEAMPIPE_URL/api/v2/health"
    # Printed once, by the first start on an empty log.
    BEAMPIPE_KEY=$(sed -n 's/.*API key: *//p' "$log/beampipe.out" | head -n 1)
    [[ -n $BEAMPIPE_KEY ]] || fail "the service did not print its first API key; see $log/beampipe.out"
    export BEAMPIPE_KEY
    (umask 077 && printf '%s' "$BEAMPIPE_KEY" >"$state/metrics.key")
}

stop_service() {
    run=$state/service log=$state/service
    [[ ! -d $run ]] || halt beampipe
}

start_prometheus() {
    # The configuration that is delivered for one process, on loopback.
    sed -e "s|beampipe:9090|127.0.0.1:$METRICS_PORT|" -e "s|beampipe:8080|127.0.0.1:$API_PORT|" \
        -e "s|/run/secrets/beampipe_metrics_key|$state/metrics.key|" -e "s|prometheus.rules.yml|$PWD/prometheus.rules.yml|" \
        -e 's|_interval: 15s|_interval: 1s|' deploy/single/prometheus.yml >"$state/prometheus.yml"
    "$here/prometheus.sh" start "$state/prometheus.yml" >/dev/null
}

# --- Its API ----------------------------------------------------------------------------------------------------

api() { # method, path, further arguments of curl
    local method=$1 path=$2
    shift 2
    curl -sS --fail-with-body --max-time 60 -X "$method" "$BEAMPIPE_URL/api/v2$path" \
        -H "Authorization: Bearer $BEAMPIPE_KEY" "$@"
}

pick() { # an expression over the JSON document `d` on standard input
    /usr/bin/python3 -c "import json, sys; d = json.load(sys.stdin); print($1)"
}

upload() {
    local graph=$here/graphs/ingest-scatter.graph
    sed -e "s|@TAP_URL@|$BEAMPIPE_TEST_TAP_URL|" -e "s|@GRAPH_PATH@|$graph|" \
        -e "s|@GRAPH_SHA256@|$(sha256sum <"$graph" | cut -d' ' -f1)|" "$here/demo/project.yaml" >"$state/project.yaml"
    sed -e "s|@TM_URL@|$BEAMPIPE_TEST_TM_URL|" -e "s|@DIM_PORT@|$BEAMPIPE_TEST_DIM_PORT|" \
        "$here/demo/profile.json" >"$state/profile.json"
    api POST /project-configs -H 'Content-Type: application/x-yaml' --data-binary "@$state/project.yaml" |
        pick '"project %s, valid: %s" % (d["project_id"], d["valid"])'
    api POST /deployment-profiles -H 'Content-Type: application/json' --data-binary "@$state/profile.json" |
        pick '"profile %s" % d["name"]'
}

register() {
    local name
    for name in "${sources[@]}"; do
        api POST /sources -H 'Content-Type: application/json' \
            -d "{\"project_module\":\"$project\",\"source_identifier\":\"$name\"}" >/dev/null
    done
    api POST /sources/discover -H 'Content-Type: application/json' -d "{\"project_module\":\"$project\"}" |
        pick '"%s sources registered, to be discovered now" % d["marked_count"]'
}

executions() { api GET "/executions?project_module=$project&items_per_page=100"; }

with_status() { executions | pick "sum(e['status'] == '$1' for e in d['items'])"; }

sources_with() { # event type: of how many sources
    api GET "/projects/$project/events?type=$1&limit=500" |
        pick 'len({name for e in d for name in e["source_identifiers"]})'
}

timeline() { # a picture that moves while the survey runs; lines where there is no terminal
    local out=debug
    [[ ${DEMO_PROFILE:-dev} == dev ]] || out=release
    "target/$out/beampipe" timeline project "$project" --follow \
        --until-settled ${#sources[@]} --timeout "$patience" &
    background+=($!)
    wait $! || say "not settled after $patience s"
}

settled() {
    (($(with_status completed) >= want_completed && $(with_status failed) >= want_failed)) &&
        (($(sources_with discovery.error) >= want_error && $(sources_with discovery.no_datasets) >= want_none))
}

dim_sessions() { curl -fsS "http://127.0.0.1:$BEAMPIPE_TEST_DIM_PORT/api/sessions" | pick 'len(d)'; }

# --- The story --------------------------------------------------------------------------------------------------

summary() { # fails unless it came out as the archive says
    local completed failed errors none sessions
    completed=$(with_status completed) failed=$(with_status failed)
    errors=$(sources_with discovery.error) none=$(sources_with discovery.no_datasets) sessions=$(dim_sessions)
    echo
    executions | /usr/bin/python3 -c '
import json, sys
for e in sorted(json.load(sys.stdin)["items"], key=lambda e: e["created_at"]):
    names = ", ".join(s["source_identifier"] for s in e["sources"])
    print("  %-10s %s  %s  %s" % (e["status"], e["uuid"], names, (e["last_error"] or "")[:100]))'
    cat <<SUMMARY

  executions completed      $completed of $want_completed
  executions failed         $failed of $want_failed
  discovery.error           $errors of $want_error
  discovery.no_datasets     $none of $want_none
  sessions on the manager   $sessions of $((want_completed + want_failed))

SUMMARY
    ((completed == want_completed && failed == want_failed && errors == want_error && none == want_none &&
        sessions == want_completed + want_failed))
}

look_at() {
    local one
    one=$(executions | pick '[e["uuid"] for e in d["items"] if e["status"] == "failed"][0]')
    cat <<URLS
  export BEAMPIPE_URL=$BEAMPIPE_URL BEAMPIPE_KEY=$BEAMPIPE_KEY
  curl -H "Authorization: Bearer \$BEAMPIPE_KEY" $BEAMPIPE_URL/api/v2/executions/$one
  curl -N -H "Authorization: Bearer \$BEAMPIPE_KEY" -H 'Accept: text/event-stream' $BEAMPIPE_URL/api/v2/executions/$one/events
  $BEAMPIPE_URL/api/v2/ready        what works and what does not, and why
  http://127.0.0.1:$METRICS_PORT/metrics           this process
  $BEAMPIPE_TEST_PROMETHEUS_URL                Prometheus: try beampipe:executions_active:max, or Alerts
  http://127.0.0.1:$BEAMPIPE_TEST_DIM_PORT                DALiuGE's manager, its sessions
URLS
}

mkdir -p "$state"
state=$(realpath "$state")
exec 6>"$state.lock"
flock -n 6 || fail "another demo runs in $state; set DEMO_STATE to another directory"
"$here/down.sh" "$state" --remove >/dev/null 2>&1 || true
rm -rf "$state"
mkdir -p "$state"

trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "building, while the servers come up"
"$here/up.sh" "$state" tap daliuge prometheus 6>&- &
servers=$!
background+=("$servers")
build 6>&-
wait "$servers"
. "$state/env"
API_PORT=$(reserve_port "$state") METRICS_PORT=$(reserve_port "$state")

start_service 6>&-
say "the service answers on $BEAMPIPE_URL"
start_prometheus 6>&-
upload
register
begun=$SECONDS
timeline
while ! settled; do
    if ((SECONDS - begun > patience)); then
        say "not settled after $patience s"
        break
    fi
    sleep 1
done
rc=0
summary || rc=1
if [[ ${DEMO_EXIT:-} == 1 ]]; then
    ((rc)) && say "this is not what the sample archive gives; logs are in $state"
    exit $rc
fi
look_at
say "up until Ctrl-C"
while :; do sleep 3600 & wait $!; done
