#!/usr/bin/env bash
# A real PostgreSQL on loopback with throw-away data, and a pgbouncer before it that has the same database twice:
# as `transaction`, pooled by transactions, and as `session`, pooled by sessions.
# Needs root to install. Neither server runs as root: started by root they run as the user `tapd`, else as you.
set -euo pipefail
umask 022

usage="usage: postgres.sh install | start | stop | status"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"

# Below nobody's home, because another user must reach it, and short, because a Unix socket lies in it.
base=${REALPARTS_SHARED_DIR:-/var/tmp/beampipe-realparts-$EUID}/postgres
port=${POSTGRES_PORT:-15432} pool_port=${POSTGRES_POOL_PORT:-15434}
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
    apt_install postgresql-15 pgbouncer iproute2
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
    server="host=127.0.0.1 port=$port dbname=postgres user=beampipe"
    cat >"$base/pgbouncer.ini" <<INI
[databases]
transaction = $server pool_mode=transaction
session = $server pool_mode=session
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $pool_port
unix_socket_dir =
auth_type = any
default_pool_size = 50
INI
    launch pgbouncer "${drop[@]}" pgbouncer "$base/pgbouncer.ini"
    wait_for pgbouncer "$bin/pg_isready" -q -h 127.0.0.1 -p "$pool_port" -d session
    echo "postgres://beampipe@127.0.0.1:$port/postgres"
    ;;
install) ;;
stop)
    # Else it waits for whoever is still connected.
    ! running postgres || kill -INT "$(pid_of postgres)"
    halt pgbouncer postgres
    ;;
status) report postgres pgbouncer ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
