#!/usr/bin/env bash
# A real PostgreSQL behind a network cable that can be pulled: a server in a network namespace of its own, joined to this
# machine by a pair of virtual interfaces. Needs root (or sudo) and what `postgres.sh install` installs. Throw-away data.
set -euo pipefail
umask 022

usage="usage: netcut.sh DIR start | cut | heal | stop"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"
base=${1:?$usage}
bin=/usr/lib/postgresql/15/bin
run=$base/run log=$base/log
port=5432
root=()
((EUID == 0)) || root=(sudo)

number() { cat "$base/number"; }
namespace() { printf 'beampipe-%s' "$(number)"; }

case ${2:-} in
start)
    mkdir -p "$base"/{run,log}
    # The name of a namespace is taken by whoever makes it first, and with it the addresses of that number.
    for n in {1..250}; do
        if as_root ip netns add "beampipe-$n" 2>/dev/null; then
            echo "$n" >"$base/number"
            break
        fi
    done
    [[ -s $base/number ]] || fail "no network namespace can be made here: this needs root and a kernel that allows them"
    n=$(number)
    as_root ip link add "bphost$n" type veth peer name server netns "beampipe-$n"
    as_root ip address add "10.213.$n.1/30" dev "bphost$n"
    as_root ip link set "bphost$n" up
    as_root ip -n "beampipe-$n" address add "10.213.$n.2/30" dev server
    as_root ip -n "beampipe-$n" link set server up
    as_root ip -n "beampipe-$n" link set lo up
    as_root chown -R tapd: "$base"
    cd "$base"
    inside=(ip netns exec "beampipe-$n" setpriv --reuid=tapd --regid=tapd --init-groups env HOME="$base")
    as_root "${inside[@]}" "$bin/initdb" -D "$base/data" -U beampipe --auth=trust -E UTF8 --locale=C.UTF-8 -N >"$log/initdb.log"
    echo "host all beampipe 10.213.$n.0/30 trust" >>"$base/data/pg_hba.conf"
    launch postgres "${root[@]}" "${inside[@]}" "$bin/postgres" -D "$base/data" -p "$port" -c listen_addresses="10.213.$n.2" \
        -c unix_socket_directories="$run" -c max_connections=100 -c shared_buffers=64MB
    wait_for postgres "$bin/pg_isready" -q -h "10.213.$n.2" -p "$port"
    echo "postgres://beampipe@10.213.$n.2:$port/postgres?sslmode=disable"
    ;;
cut) # at the server's end: this machine is told nothing, its packets vanish
    as_root ip -n "$(namespace)" link set server down
    ;;
heal)
    as_root ip -n "$(namespace)" link set server up
    ;;
stop)
    ! running postgres || kill -INT "$(pid_of postgres)"
    halt postgres
    as_root ip link del "bphost$(number)" 2>/dev/null || true
    as_root ip netns del "$(namespace)"
    ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
