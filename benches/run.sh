#!/usr/bin/env bash
# Builds what is measured, brings the peer, measures, prints tables.
#
#   BENCH_ONLY="log_append replay"  only these suites (log_append postgres replay stream sse http scale growth)
#   BENCH_ARGS="--rounds 2"         further arguments of the driver
#
# Made histories (about 6 GB) are kept in .state/bench and made once; results go to .state/bench/results.json.
# The exit status says whether everything could be measured, not whether aims were met.
set -euo pipefail
cd "$(dirname "$0")/.."

state=$PWD/.state/bench
cache=${XDG_CACHE_HOME:-$HOME/.cache}/beampipe-bench
# The peer and what it needs, pinned.
umadb=0.7.8
venv=$cache/umadb-$umadb

say() { printf '\n== %s\n' "$*" >&2; }
fail() {
    printf 'bench: %s\n' "$*" >&2
    exit 1
}

command -v cargo >/dev/null || fail "cargo is missing; install Rust from https://rustup.rs"
command -v cc >/dev/null || fail "a C compiler is missing; apt-get install gcc libc6-dev"

if [[ ! -x $venv/bin/umadb ]]; then
    say "installing UmaDB $umadb from PyPI into $venv"
    rm -rf "$venv"
    python3 -m venv "$venv" || fail "python3 cannot make an environment; apt-get install python3-venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "umadb==$umadb" ||
        fail "cannot install umadb==$umadb"
fi

say "building"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --release --locked --bin beampipe
# Not locked: its lock file also names what the root's crates depend on, which changes with them.
cargo build --release --manifest-path benches/Cargo.toml

mkdir -p "$state"
# A server of its own, with durable commits; stopped by pid whatever happens.
trap 'tests/realparts/down.sh "$state/realparts" --remove >&2' EXIT
tests/realparts/up.sh "$state/realparts" postgres >&2
. "$state/realparts/env"

# shellcheck disable=SC2086 # both are lists of words
"$CARGO_TARGET_DIR/release/beampipe-bench" --state "$state" --beampipe "$CARGO_TARGET_DIR/release/beampipe" \
    --umadb "$venv/bin/umadb" --postgres "$BEAMPIPE_TEST_POSTGRES_URL" ${BENCH_ARGS:-} ${BENCH_ONLY:-} | tee "$state/results.md"
[[ ${PIPESTATUS[0]} == 0 ]] || exit 1
say "results: $state/results.json and $state/results.md"
