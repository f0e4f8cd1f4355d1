#!/usr/bin/env bash
# A real IVOA TAP service (DaCHS on a PostgreSQL of its own) on loopback with a few invented rows.
# Needs root to install. Neither server may run as root: started by root they run as the user `tapd`, else as you.
set -euo pipefail
umask 022

usage="usage: tap.sh install | start | stop | status"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"

# Another user must reach this when root starts it, so it is not below anybody's home; and it must be short,
# because a Unix socket lies in it.
base=${REALPARTS_SHARED_DIR:-/var/tmp/beampipe-realparts-$EUID}/tap
port=${TAP_PORT:-8082} pg_port=${TAP_PG_PORT:-15433}
pg_bin=/usr/lib/postgresql/15/bin extensions=/usr/share/postgresql/15/extension
trimmed=$extensions/pg_sphere--1.2.0trimmed.sql
url=http://127.0.0.1:$port/tap
export GAVOSETTINGS=$base/gavo.rc GAVOCUSTOM=/nonexistent
run=$base/run log=$base/log

if ((EUID == 0)); then
    user=tapd group=tapd
    drop=(setpriv --reuid="$user" --regid="$group" --init-groups env HOME="$base")
else
    user=$(id -un) group=$(id -gn)
    drop=(env HOME="$base")
fi

packages=(python3-gavo postgresql-15 postgresql-15-pgsphere postgresql-15-q3c curl)

install() {
    local tmp
    no_cluster_of_debians_own
    apt_install "${packages[@]}"
    if [[ ! -e $trimmed ]]; then
        # The newest PostgreSQL 15 refuses two operators that Debian's pg_sphere only keeps for old times' sake.
        tmp=$(mktemp)
        sed '/^-- a minimal set of backwards-compatible/,/^-- debugging/d' "$extensions/pg_sphere--1.2.0.sql" >"$tmp"
        as_root install -m 644 "$tmp" "$trimmed.new.$$"
        as_root mv "$trimmed.new.$$" "$trimmed"
        rm -f "$tmp"
    fi
    make_server_user "$user"
}

case ${1:-} in
install) install ;;
start)
    install
    mkdir -p "$base"/{run,log}
    chown "$user:$group" "$base" "$base"/{run,log}
    cat >"$base/gavo.rc" <<RC
[general]
rootDir: $base/gavo
group: $group
gavoGroup: $group
maintainerAddress: nobody@localhost
[web]
bindAddress: 127.0.0.1
serverPort: $port
serverURL: http://127.0.0.1:$port
sitename: Test archive
[ivoa]
authority: test.archive
RC
    cd "$base"
    [[ -e $base/pg/PG_VERSION ]] ||
        "${drop[@]}" "$pg_bin/initdb" -D "$base/pg" -U "$user" --auth=trust -E UTF8 --locale=C.UTF-8 -N >"$base/log/initdb.log"
    launch pg "${drop[@]}" "$pg_bin/postgres" -D "$base/pg" -p "$pg_port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories="$run" -c fsync=off -c shared_buffers=64MB
    wait_for pg "$pg_bin/pg_isready" -q -h 127.0.0.1 -p "$pg_port"
    sql=("${drop[@]}" psql -h 127.0.0.1 -p "$pg_port" -U "$user" -q -v ON_ERROR_STOP=1 -d gavo)
    if [[ ! -e $base/ready ]]; then
        "${drop[@]}" dropdb --if-exists -h 127.0.0.1 -p "$pg_port" -U "$user" gavo 2>/dev/null
        "${drop[@]}" createdb -h 127.0.0.1 -p "$pg_port" -U "$user" -T template0 -E UTF8 gavo
        "${sql[@]}" -c "create extension pg_sphere version '1.2.0trimmed'"
        "${drop[@]}" dachs init -d "host=127.0.0.1 port=$pg_port dbname=gavo user=$user" >"$base/log/init.log" 2>&1
        "${drop[@]}" dachs imp //tap >>"$base/log/init.log" 2>&1
        touch "$base/ready"
    fi
    sed -i "s/^port *=.*/port = $pg_port/" "$base/gavo/etc/dsn"
    rows=$(cd "$here/tap" && find . -type f | sort | xargs sha256sum)
    if [[ $(cat "$base/rows" 2>/dev/null) != "$rows" ]]; then
        halt dachs # it keeps the descriptions of the tables in memory
        cp -r "$here"/tap/* "$base/gavo/inputs/"
        chown -R "$user:$group" "$base/gavo/inputs"
        for source in archive casda vizier; do "${drop[@]}" dachs imp "$source/q" >>"$base/log/init.log" 2>&1; done
        "${sql[@]}" <"$here/tap/vizier/name.sql"
        echo "$rows" >"$base/rows"
    fi
    launch dachs "${drop[@]}" dachs serve debug
    wait_for dachs answers "$url/availability"
    echo "$url"
    ;;
stop) halt dachs pg ;;
status) report pg dachs ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
