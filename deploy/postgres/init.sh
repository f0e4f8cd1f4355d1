#!/usr/bin/env bash
# Runs once, in the PostgreSQL image, on an empty data directory.
set -euo pipefail

# Through standard input: what is in arguments, other processes see.
psql -X -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<SQL
CREATE ROLE beampipe_owner LOGIN PASSWORD '$(cat /run/secrets/log_owner_password)';
CREATE ROLE beampipe LOGIN PASSWORD '$(cat /run/secrets/log_password)';
SQL
psql -X -v ON_ERROR_STOP=1 -v owner=beampipe_owner -v service=beampipe -v schema=beampipe \
    -U "$POSTGRES_USER" -d "$POSTGRES_DB" -f /deploy/roles.sql
