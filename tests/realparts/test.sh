#!/usr/bin/env bash
# Runs every test against real servers of its own, on free loopback ports, and stops them again whatever happens.
# The last lines printed are the test runner's summary. --deps only installs; --soak runs the long storms;
# other arguments go to `cargo nextest run`.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
. "$here/lib.sh"

runner() {
    cargo nextest --version >/dev/null 2>&1 && return
    say "cargo-nextest is missing: building it with cargo install, once, some minutes"
    cargo install cargo-nextest --locked
}

what=all
case ${1:-} in
--deps) what=deps && shift ;;
--soak) what=soak && shift ;;
esac

runner
state=$(mktemp -d "${TMPDIR:-/tmp}/beampipe-test.XXXXXX")
summary=$state/output
cleanup() {
    local rc=$? ruler
    trap '' INT TERM
    "$here/down.sh" "$state" >/dev/null 2>&1 || say "not everything stopped: $here/down.sh $state" >&2
    say "tests took $SECONDS s in all"
    ruler=$(grep -nE '^ *(─|-){5,}' "$summary" 2>/dev/null | tail -n 1 | cut -d: -f1) || true
    [[ -z $ruler ]] || tail -n "+$ruler" "$summary" >"$state/tail"
    if ((rc)); then
        say "failed; the servers' logs are in $state, $here/down.sh $state --remove takes them away"
        # The runner's own words come last, where people and machines look for them.
        [[ ! -s $state/tail ]] || cat "$state/tail"
    else
        [[ ! -s $state/tail ]] || cat "$state/tail"
        "$here/down.sh" "$state" --remove >/dev/null 2>&1 || true
    fi
    exit $rc
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$here/up.sh" "$state" tap daliuge postgres s3 slurm sshd receivers prometheus python tools
[[ $what != deps ]] || exit 0
. "$state/env"

say "checking documents and configurations"
for check in tests/*.py; do # independent checks, such as the hash chain's test vectors
    [[ -e $check ]] || continue
    say "$check"
    "$BEAMPIPE_TEST_PYTHON" "$check"
done
promtool check config --syntax-only prometheus.yml deploy/single/prometheus.yml
promtool check rules prometheus.rules.yml
promtool test rules prometheus.rules.test.yml
amtool check-config deploy/alertmanager/alertmanager.yml
for profile in "" eventstore observability; do docker-compose -f compose.yml ${profile:+--profile "$profile"} config --quiet; done
docker-compose -f compose.single.yml config --quiet
say "systemd units"
"$here/units.sh"

[[ $what != soak ]] || set -- "$@" -E 'test(storm)' --no-capture
if [[ $what == soak ]]; then export BEAMPIPE_TEST_SOAK=1; fi
cargo nextest run --workspace --no-fail-fast "$@" 2>&1 | tee "$summary"
