#!/usr/bin/env bash
# Debian's Prometheus on loopback with throw-away storage. Needs root to install only.
set -euo pipefail

usage="usage: prometheus.sh install | start PROMETHEUS.yml | reload | stop | status"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"

base=${REALPARTS_DIR:-$cache}/prometheus
port=${PROMETHEUS_PORT:-9099}
run=$base log=$base

case ${1:-} in
install) apt_install prometheus curl ;;
start)
    apt_install prometheus curl
    config=$(realpath "${2:?$usage}")
    mkdir -p "$base"
    promtool check config "$config"
    running prometheus || rm -rf "$base/prometheus.data"
    launch prometheus prometheus --config.file="$config" --storage.tsdb.path="$base/prometheus.data" \
        --web.listen-address="127.0.0.1:$port" --web.enable-lifecycle
    wait_for prometheus answers "http://127.0.0.1:$port/-/ready"
    echo "Prometheus http://127.0.0.1:$port"
    ;;
reload) curl -fsS -X POST "http://127.0.0.1:$port/-/reload" ;;
stop) halt prometheus ;;
status) report prometheus ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
