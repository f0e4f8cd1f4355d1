#!/usr/bin/env bash
# What a service costs that does nothing yet: from start to ready on an empty log, and the memory it then holds.
# Medians of ROUNDS (5) starts of the release build, each on a state directory of its own; every figure is printed.
#
# Start to ready is measured from outside, from just before the process is started to the first 200 of /ready, asked
# for every 5 ms. Memory is VmRSS after IDLE (10) seconds of nothing but the scheduler's ticks.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
. tests/realparts/lib.sh
rounds=${ROUNDS:-5} idle=${IDLE:-10}
binary=${FOOTPRINT_BINARY:-target/release/beampipe}
if [[ -z ${FOOTPRINT_BINARY:-} ]]; then cargo build --release --locked --bin beampipe; fi

state=$(mktemp -d "${TMPDIR:-/tmp}/beampipe-footprint.XXXXXX")
service=
cleanup() {
    [[ -z $service ]] || kill "$service" 2>/dev/null || true
    release_ports "$state"
    rm -rf "$state"
}
trap cleanup EXIT
api=$(reserve_port "$state") metrics=$(reserve_port "$state")

# Starts it, waits until it is ready, and prints the milliseconds that took and the pid.
start() {
    /usr/bin/python3 - "$binary" "$1" "$api" "$metrics" <<'PYTHON'
import http.client, os, subprocess, sys, time
binary, state, api, metrics = sys.argv[1:]
environment = dict(os.environ, BEAMPIPE_STATE_DIR=state, BEAMPIPE_HTTP__LISTEN=f"127.0.0.1:{api}",
                   BEAMPIPE_METRICS__LISTEN=f"127.0.0.1:{metrics}")
said = open(state + ".out", "w")
begun = time.monotonic()
process = subprocess.Popen([binary, "serve"], env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
while True:
    if process.poll() is not None:
        sys.exit(open(state + ".out").read())
    try:
        connection = http.client.HTTPConnection("127.0.0.1", int(api), timeout=1)
        connection.request("GET", "/api/v2/ready")
        if connection.getresponse().status == 200:
            break
    except OSError:
        pass
    if time.monotonic() - begun > 30:
        process.kill()
        sys.exit("not ready after 30 s: " + open(state + ".out").read())
    time.sleep(0.005)
print(round((time.monotonic() - begun) * 1000), process.pid)
PYTHON
}

median() { sort -n | awk '{v[NR]=$1} END {print v[int((NR + 1) / 2)]}'; }

for ((round = 1; round <= rounds; round++)); do
    started=$(start "$state/$round")
    read -r ms service <<<"$started"
    sleep "$idle"
    kib=$(awk '/^VmRSS:/ {print $2}' "/proc/$service/status")
    echo "round $round: ready after $ms ms; $kib KiB resident after $idle s"
    echo "$ms" >>"$state/ms"
    echo "$kib" >>"$state/kib"
    kill "$service"
    while kill -0 "$service" 2>/dev/null; do sleep 0.05; done
    service=
done
echo "start to ready, empty log: $(median <"$state/ms") ms (aim: under 300)"
echo "resident, idle:            $(($(median <"$state/kib") / 1024)) MiB (aim: under 50)"
