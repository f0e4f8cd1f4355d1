#!/usr/bin/env bash
# A real PostgreSQL on loopback with throw-away data, and Debian's pgbouncer (installed; tests start their own).
# Needs root to install. The server refuses to run as root: started by root it runs as the user `tapd`, else as you.
set -euo pipefail
umask 022

usage="usage: postgres.sh install | start | stop | status"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"

# Below nobody's home, because another user must reach it, and short, because a Unix socket lies in it.
base=${REALPARTS_SHARED_DIR:-/var/tmp/beampipe-realparts-$EUID}/postgres
port=${POSTGRES_PORT:-15432}
bin=/usr/lib/postgresql/15/bin
run=$base/run log=$base/log

if ((EUID == 0)); then
    user=tapd
    drop=(setpriv --reuid="$user" --regid="$user" --init-groups env HOME="$base")
else
    user=$(id -un)
    drop=(env HOME="$base")
fi

case ${1:-} in
install | start)
    no_cluster_of_debians_own
    apt_install postgresql-15 pgbouncer
    make_server_user "$user"
    ;;&
start)
    mkdir -p "$base"/{run,log}
    ((EUID)) || chown "$user:" "$base" "$base"/{run,log}
    cd "$base"
    [[ -e $base/data/PG_VERSION ]] ||
        "${drop[@]}" "$bin/initdb" -D "$base/data" -U beampipe --auth=trust -E UTF8 --locale=C.UTF-8 -N >"$log/initdb.log"
    # As a survey would run it, durable commits included.
    launch postgres "${drop[@]}" "$bin/postgres" -D "$base/data" -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories="$run" -c max_connections=300 -c shared_buffers=128MB -c max_wal_size=2GB
    wait_for postgres "$bin/pg_isready" -q -h 127.0.0.1 -p "$port"
    echo "postgres://beampipe@127.0.0.1:$port/postgres"
    ;;
install) ;;
stop)
    # Else it waits for whoever is still connected.
    ! running postgres || kill -INT "$(pid_of postgres)"
    halt postgres
    ;;
status) report postgres ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
