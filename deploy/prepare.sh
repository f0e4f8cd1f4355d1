#!/usr/bin/env bash
# What compose.yml and compose.single.yml need on this machine: passwords, drawn once, and a place for graphs. May be
# repeated: what is there stays.
set -euo pipefail
umask 077
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# Nobody else gets into the directory; a container sees only the files that it is given, under a user of its own.
mkdir -p .state/secrets .state/graphs
chmod 0700 .state/secrets
chmod 0755 .state/graphs
for name in postgres_password log_owner_password log_password grafana_password eventstore_password; do
    file=.state/secrets/$name
    [[ -s $file ]] || head -c 24 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n' >"$file"
    chmod 0444 "$file"
done
# Filled by hand after the first start; until then only the scrape job beampipe-api is refused.
[[ -e .state/secrets/metrics_key ]] || : >.state/secrets/metrics_key
chmod 0644 .state/secrets/metrics_key
