#!/usr/bin/env bash
# Runs in the makers' certificate generator: an authority and a certificate for each node, once.
# /certificates is for the nodes; /authority has what clients need and nothing secret.
set -euo pipefail

[[ ! -e /authority/ca.crt ]] || exit 0
cd /certificates
es-gencert-cli create-ca -out ./ca
for node in 1 2 3; do
    es-gencert-cli create-node -ca-certificate ./ca/ca.crt -ca-key ./ca/ca.key -out "./eventstore-$node" \
        -ip-addresses 127.0.0.1 -dns-names "eventstore-$node,localhost"
done
# Nobody needs the authority's key before the next set of certificates, which has an authority of its own.
mv ./ca/ca.crt ./ca.crt
rm -rf ./ca
# The servers run as 1000, whatever the generator's umask is.
chown -R 1000:1000 .
chmod 0700 eventstore-?
chmod 0400 eventstore-?/*
# Last: it says that all of it is done.
install -m 0444 ./ca.crt /authority/ca.crt
