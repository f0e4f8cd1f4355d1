# Shared by the scripts in this directory. A script that starts daemons sets $run (pid files) and $log first.
# shellcheck shell=bash disable=SC2154

say() { printf '%s\n' "[realparts] $*"; }
fail() {
    printf '%s\n' "[realparts] $*" >&2
    exit 1
}

# The parts that run servers: each has a script of its name that starts, stops and reports them.
servers="tap daliuge postgres s3 prometheus slurm sshd receivers"
cache=${REALPARTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/beampipe-realparts}

# --- Installing -------------------------------------------------------------------------------------------------

as_root() { # what only root may do: packages, a system user, a file of PostgreSQL's
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root and there is no sudo: $*"
    fi
}

missing_packages() { # names of those that are not installed
    local name
    for name in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || printf '%s ' "$name"
    done
}

with_progress() { # text, command: says every 15 s that it is still at it, and shows the end of its log on failure
    local text=$1 start=$SECONDS out pid rc=0 next
    shift
    out=$(mktemp "${TMPDIR:-/tmp}/realparts-install.XXXXXX")
    say "$text ..."
    "$@" >"$out" 2>&1 &
    pid=$!
    next=$((SECONDS + 15))
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.3
        if ((SECONDS >= next)); then
            say "$text ... $((SECONDS - start)) s so far"
            next=$((SECONDS + 15))
        fi
    done
    wait "$pid" || rc=$?
    if ((rc)); then
        tail -n 25 "$out" >&2
        say "$text failed after $((SECONDS - start)) s" >&2
    else
        say "$text: done in $((SECONDS - start)) s"
    fi
    rm -f "$out"
    return $rc
}

apt_now() { # as root, with the lock held. An interrupt is left for afterwards: dpkg must not stop half way
    trap '' INT TERM
    local lists=/var/lib/apt/lists policy=/usr/sbin/policy-rc.d made=
    if [[ -z $(find "$lists" -maxdepth 1 -name '*Packages*' -mmin -720 -print -quit 2>/dev/null) ]]; then
        as_root apt-get -o DPkg::Lock::Timeout=600 update -q
    fi
    # Debian must not start the services it ships: the scripts here run their own, elsewhere.
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
        made=1
    fi
    local rc=0
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -q \
        --no-install-recommends "$@" || rc=$?
    [[ -z $made ]] || as_root rm -f "$policy"
    return $rc
}

apt_install() { # packages: nothing to do when they are there; one at a time for this user
    local wanted
    [[ -n $(missing_packages "$@") ]] || return 0
    mkdir -p "$cache"
    (
        flock 8
        read -ra wanted <<<"$(missing_packages "$@")"
        ((${#wanted[@]})) || exit 0
        with_progress "installing Debian packages (root): ${wanted[*]}" apt_now "${wanted[@]}"
    ) 8>"$cache/apt.lock"
}

no_cluster_of_debians_own() { # before PostgreSQL is installed: the scripts here make their own
    [[ -n $(missing_packages postgresql-15) && ! -e /etc/postgresql-common/createcluster.conf ]] || return 0
    as_root mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
}

make_server_user() { # name: for servers that do not run as root
    ((EUID == 0)) || return 0
    id "$1" >/dev/null 2>&1 && return
    # Two parts may be at it at the same time.
    useradd --system --user-group --home-dir /nonexistent --shell /bin/bash "$1" || id "$1" >/dev/null
}

venv_install() { # directory, requirements file: complete or absent, whoever interrupts it
    local venv=$1 requirements=$2 python=${PYTHON:-/usr/bin/python3}
    [[ ! -e $venv/complete ]] || return 0
    mkdir -p "$(dirname "$venv")"
    (
        flock 8
        [[ ! -e $venv/complete ]] || exit 0
        rm -rf "$venv"
        with_progress "installing $(basename "$requirements" .txt) for Python into $venv" \
            bash -ec '"$1" -m venv "$2" && "$2/bin/pip" install -q --disable-pip-version-check -r "$3"' \
            venv "$python" "$venv" "$requirements"
        touch "$venv/complete"
    ) 8>"$venv.lock"
}

venv_for() { # requirements file -> its directory: other versions, another directory
    printf '%s/%s-%s\n' "$cache" "$(basename "$1" -requirements.txt)" "$(sha256sum <"$1" | cut -c1-12)"
}

# --- Ports ------------------------------------------------------------------------------------------------------

# Below the range the kernel hands out by itself, so that no passing connection takes one between choice and bind.
# A file made without clobbering is the reservation; one whose owner's directory has gone is taken over.
reservations=${TMPDIR:-/tmp}/beampipe-ports-$EUID

reserve_port() { # owner's directory
    local owner=$1 port file
    mkdir -p "$reservations"
    for _ in {1..500}; do
        port=$((20000 + RANDOM % 12000))
        file=$reservations/$port
        if [[ -e $file && ! -d $(cat "$file" 2>/dev/null) ]]; then rm -f "$file"; fi
        (set -C && echo "$owner" >"$file") 2>/dev/null || continue
        if (exec 7<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            rm -f "$file" # somebody already answers there
            continue
        fi
        echo "$port"
        return
    done
    fail "no free port on loopback between 20000 and 32000"
}

release_ports() { # owner's directory
    [[ -d $reservations ]] || return 0
    grep -lxF -- "$1" "$reservations"/* 2>/dev/null | xargs -r rm -f
}

# --- Daemons ----------------------------------------------------------------------------------------------------

# A pid file holds the pid and the process's start time, so that a recycled pid is never taken for ours.
born() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

running() {
    local pid since
    [[ -s $run/$1.pid ]] || return 1
    read -r pid since <"$run/$1.pid"
    [[ -n $since && $(born "$pid") == "$since" ]] && [[ $(sed 's/.*) //' "/proc/$pid/stat" | cut -c1) != Z ]]
}

pid_of() { cut -d' ' -f1 "$run/$1.pid"; }

launch() { # name, command
    local name=$1
    shift
    running "$name" && return
    setsid "$@" </dev/null >"$log/$name.out" 2>&1 7>&- 8>&- 9>&- 6>&- &
    echo "$! $(born $!)" >"$run/$name.pid"
}

wait_for() { # name, command that succeeds once the daemon answers
    local name=$1 end=$((SECONDS + ${REALPARTS_PATIENCE:-120}))
    shift
    while ((SECONDS < end)) && running "$name"; do
        "$@" >/dev/null 2>&1 && return
        sleep 0.3
    done
    echo "$name does not answer; last lines of $log/$name.out:" >&2
    tail -n 15 "$log/$name.out" >&2
    return 1
}

answers() { curl -fsS -o /dev/null --max-time 2 "$1"; }

halt() { # names, in the order to stop them
    local name pid
    for name in "$@"; do
        if running "$name"; then
            pid=$(pid_of "$name")
            kill "$pid"
            for _ in {1..60}; do running "$name" || break; sleep 0.25; done
            if running "$name"; then kill -9 -- "-$pid"; fi
        fi
        rm -f "$run/$name.pid"
    done
}

report() { # names; fails unless all of them run
    local name rc=0
    for name in "$@"; do
        if running "$name"; then echo "$name up, pid $(pid_of "$name")"; else echo "$name down"; rc=3; fi
    done
    return $rc
}
