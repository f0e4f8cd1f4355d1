#!/usr/bin/env bash
# Checks the units of deploy/systemd without a running systemd: that they are understood, and how much they may do.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"
units=$here/../../deploy/systemd
command -v systemd-analyze >/dev/null || fail "systemd-analyze is missing: $here/up.sh DIR tools installs it"

work=$(mktemp -d "${TMPDIR:-/tmp}/beampipe-units.XXXXXX")
trap 'rm -rf "$work"' EXIT
for template in "$units"/*.service; do
    name=$(basename "$template" .service)
    for file in "$units"/*.env; do
        # The binary is not installed where tests run.
        unit=$work/$name$(basename "$file" .env).service
        sed 's|^ExecStart=/usr/local/bin/beampipe |ExecStart=/bin/true |' "$template" >"$unit"
        # It exits with 0 when a line is not understood, but says so.
        said=$(systemd-analyze verify "$unit" 2>&1) || fail "$unit: $said"
        [[ -z $said ]] || fail "$said"
    done
    # 10 is a service that may do anything.
    systemd-analyze security --offline=true --threshold=20 --no-pager "$unit" | tail -n 1
done
systemd-sysusers --dry-run "$(realpath "$units/beampipe.sysusers.conf")" >/dev/null 2>&1
