#!/usr/bin/env bash
# Stops, by pid, what up.sh started in STATE_DIR, and gives its ports back. Logs stay; --remove takes them too.
set -uo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"
state=$(realpath "${1:?usage: down.sh STATE_DIR [--remove]}") || exit 1
[[ -s $state/ports ]] || { say "nothing was started in $state"; exit 0; }
. "$state/ports"
export REALPARTS_DIR=$state
stops=()
for part in $servers; do
    "$here/$part.sh" stop &
    stops+=($!)
done
rc=0
for stop in "${stops[@]}"; do wait "$stop" || rc=1; done
rm -f "$state/env"
if [[ ${2:-} == --remove ]] && ((rc == 0)); then
    release_ports "$state"
    rm -rf "$state" "$REALPARTS_SHARED_DIR"
fi
exit $rc
