#!/usr/bin/env bash
# Two real PostgreSQL servers on loopback, the second one a streaming standby of the first, with throw-away data.
# Neither runs as root: started by root they run as the user `tapd`, else as you. Needs what `postgres.sh install` installs.
set -euo pipefail
umask 022

usage="usage: pgpair.sh DIR PORT STANDBY_PORT start sync|async | cut | kill-primary | promote | stop"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"
base=${1:?$usage} port=${2:?$usage} standby_port=${3:?$usage}
bin=/usr/lib/postgresql/15/bin
run=$base/run log=$base/log
if ((EUID == 0)); then
    drop=(setpriv --reuid=tapd --regid=tapd --init-groups env HOME="$base")
else
    drop=(env HOME="$base")
fi

ask() { # port, statement
    "$bin/psql" -X -q -A -t -h 127.0.0.1 -p "$1" -U beampipe -d postgres -c "$2"
}

server() { # name, data, port
    launch "$1" "${drop[@]}" "$bin/postgres" -D "$base/$2" -p "$3" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories="$run" -c max_connections=100 -c shared_buffers=64MB -c wal_keep_size=256MB
    wait_for "$1" "$bin/pg_isready" -q -h 127.0.0.1 -p "$3"
}

case ${4:-} in
start)
    mkdir -p "$base"/{run,log}
    ((EUID)) || chown -R tapd: "$base"
    cd "$base"
    "${drop[@]}" "$bin/initdb" -D "$base/primary" -U beampipe --auth=trust -E UTF8 --locale=C.UTF-8 -N >"$log/initdb.log"
    server primary primary "$port"
    "${drop[@]}" "$bin/pg_basebackup" -D "$base/standby" -h 127.0.0.1 -p "$port" -U beampipe -R -X stream -c fast
    server standby standby "$standby_port"
    if [[ ${5:?$usage} == sync ]]; then
        ask "$port" "ALTER SYSTEM SET synchronous_standby_names = '*'"
        ask "$port" "SELECT pg_reload_conf()" >/dev/null
        for _ in {1..100}; do
            [[ $(ask "$port" "SELECT sync_state FROM pg_stat_replication") == sync ]] && break
            sleep 0.1
        done
        [[ $(ask "$port" "SELECT sync_state FROM pg_stat_replication") == sync ]] || fail "the standby is not synchronous"
    fi
    ;;
cut) # the standby hears no more of what the primary does
    ask "$standby_port" "ALTER SYSTEM SET primary_conninfo = ''"
    ask "$standby_port" "SELECT pg_reload_conf()" >/dev/null
    for _ in {1..100}; do
        [[ -n $(ask "$port" "SELECT 1 FROM pg_stat_replication") ]] || exit 0
        sleep 0.1
    done
    fail "the standby is still connected"
    ;;
kill-primary)
    kill -9 -- "-$(pid_of primary)"
    rm -f "$run/primary.pid"
    ;;
promote)
    cd "$base"
    "${drop[@]}" "$bin/pg_ctl" promote -D "$base/standby" -w -s
    ;;
stop)
    for name in primary standby; do
        ! running "$name" || kill -INT "$(pid_of "$name")"
    done
    halt primary standby
    ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
