#!/bin/sh
# Starts one node of the cluster under its own name. Passwords may not be settings of this server's files, only variables,
# so they are read from a secret here and stand in no Compose file.
set -eu

node=$(hostname)
KURRENTDB_CERTIFICATE_FILE=/certificates/$node/node.crt
KURRENTDB_CERTIFICATE_PRIVATE_KEY_FILE=/certificates/$node/node.key
KURRENTDB_NODE_HOST_ADVERTISE_AS=$node
KURRENTDB_REPLICATION_HOST_ADVERTISE_AS=$node
KURRENTDB_DEFAULT_ADMIN_PASSWORD=$(cat /run/secrets/eventstore_password)
KURRENTDB_DEFAULT_OPS_PASSWORD=$KURRENTDB_DEFAULT_ADMIN_PASSWORD
export KURRENTDB_CERTIFICATE_FILE KURRENTDB_CERTIFICATE_PRIVATE_KEY_FILE KURRENTDB_NODE_HOST_ADVERTISE_AS \
    KURRENTDB_REPLICATION_HOST_ADVERTISE_AS KURRENTDB_DEFAULT_ADMIN_PASSWORD KURRENTDB_DEFAULT_OPS_PASSWORD
exec /opt/kurrentdb/KurrentDB
