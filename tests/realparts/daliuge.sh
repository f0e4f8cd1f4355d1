#!/usr/bin/env bash
# A small real DALiuGE on loopback: Translator Manager, one Node Manager, one Data Island Manager.
# Needs no root, but for the Debian packages that build its Python environment.
set -euo pipefail

usage="usage: daliuge.sh install | install-for-jobs | start | stop | start-tm | stop-tm | start-nm | stop-nm | start-dim | stop-dim | status"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"

base=${REALPARTS_DIR:-$cache}/dlg
venv=${DLG_VENV:-$(venv_for "$here/daliuge-requirements.txt")}
host=127.0.0.1
tm=${DLG_TM_PORT:-8084} dim=${DLG_DIM_PORT:-8001} nm=${DLG_NM_PORT:-8000}
events=${DLG_EVENTS_PORT:-5555} rpc=${DLG_RPC_PORT:-6666}
log=$base/log run=$base/run
# A copy that the job user can read: $cache is below somebody's home.
for_jobs=${DLG_JOBS_VENV:-/var/tmp/$(basename "$venv")-$EUID}

install() {
    [[ ! -e $venv/complete ]] || return 0
    apt_install python3-venv python3-dev gcc libc6-dev curl
    venv_install "$venv" "$here/daliuge-requirements.txt"
}

install_for_jobs() { # complete or absent, whoever interrupts it; later starts find it there
    [[ ! -e $for_jobs || -O $for_jobs ]] || fail "$for_jobs belongs to somebody else: remove it, or set DLG_JOBS_VENV"
    (
        flock 8
        [[ ! -e $for_jobs/complete ]] || exit 0
        rm -rf "$for_jobs"
        cp -r "$venv" "$for_jobs"
        rm "$for_jobs/complete"
        grep -rlI --null -- "$venv" "$for_jobs/bin" "$for_jobs/pyvenv.cfg" | xargs -0 sed -i "s|$venv|$for_jobs|g"
        chmod -R a+rX "$for_jobs"
        touch "$for_jobs/complete"
    ) 8>"$cache/daliuge-for-jobs.lock"
}

dlg() {
    local part=$1
    shift
    launch "$part" "$venv/bin/dlg" "$part" -H "$host" -l "$log" "$@"
}

start_tm() { dlg tm -p "$tm" -d "$base/graphs" -t "$base/graphs"; }
start_nm() { dlg nm -P "$nm" --event_port "$events" --rpc_port "$rpc" -t "${DLG_THREADS:-4}"; }
start_dim() { dlg dim -P "$dim" -N "$host:$nm:$events:$rpc"; }
wait_tm() {
    wait_for tm answers "http://$host:$tm/openapi.json"
    # Its first translation has to be alone: of two at once one fails, and sometimes all that follow.
    curl -fsS -o /dev/null --max-time 60 "http://$host:$tm/unroll_and_partition" -d algorithm=metis -d num_partitions=1 \
        -d num_islands=1 --data-urlencode "lg_content@$here/graphs/one-fails.graph"
}
wait_nm() { wait_for nm answers "http://$host:$nm/api"; }
wait_dim() { wait_for dim answers "http://$host:$dim/api"; }

case ${1:-} in
install) install ;;
install-for-jobs)
    install
    install_for_jobs
    echo "$for_jobs"
    ;;
start | start-*)
    install
    mkdir -p "$log" "$run" "$base/root" "$base/graphs"
    export DLG_ROOT=$base/root
    ;;&
start)
    start_tm
    start_nm
    wait_nm # the DIM looks for its nodes once, at its start
    start_dim
    wait_dim
    wait_tm
    echo "TM http://$host:$tm  DIM http://$host:$dim  NM http://$host:$nm  logs $log"
    ;;
start-tm) start_tm && wait_tm ;;
start-nm) start_nm && wait_nm ;;
start-dim) start_dim && wait_dim ;;
stop) halt dim nm tm ;;
stop-tm) halt tm ;;
stop-nm) halt nm ;;
stop-dim) halt dim ;;
status) report tm nm dim ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
