#!/usr/bin/env bash
# Who receives messages of alerts, on loopback: a receiver of webhooks that checks signatures with a library of others, a mail
# server with TLS and an authority of its own, and Debian's Alertmanager. Needs root to install only.
set -euo pipefail

usage="usage: receivers.sh install | start | stop | status"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"

base=${REALPARTS_DIR:-$cache}/receivers
webhook_port=${WEBHOOK_PORT:-18410} smtp_port=${SMTP_PORT:-18411} smtps_port=${SMTPS_PORT:-18412}
alertmanager_port=${ALERTMANAGER_PORT:-18413}
run=$base/run log=$base/log
venv=$(venv_for "$here/receivers-requirements.txt")
# What the tests log in with; up.sh says the same.
user=beampipe password=beampipe-test-mail

certificates() { # an authority for these days, and a server's certificate of it
    [[ ! -s $base/server.pem ]] || return 0
    cat >"$base/server.ext" <<EXT
subjectAltName = DNS:localhost, IP:127.0.0.1
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
EXT
    local ec=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
    openssl req -x509 "${ec[@]}" -keyout "$base/ca.key" -out "$base/ca.pem" -days 30 -subj "/CN=beampipe test authority" 2>/dev/null
    openssl req "${ec[@]}" -keyout "$base/server.key" -out "$base/server.csr" -subj "/CN=localhost" 2>/dev/null
    openssl x509 -req -in "$base/server.csr" -CA "$base/ca.pem" -CAkey "$base/ca.key" -CAcreateserial -days 30 \
        -extfile "$base/server.ext" -out "$base/server.pem" 2>/dev/null
}

listens() { (exec 7<>"/dev/tcp/127.0.0.1/$1"); }

case ${1:-} in
install | start)
    apt_install python3-venv openssl prometheus-alertmanager curl
    venv_install "$venv" "$here/receivers-requirements.txt"
    ;;&
start)
    mkdir -p "$run" "$log" "$base/mail"
    certificates
    # What it is told it tells at once, so that a test sees what it made of it.
    cat >"$base/alertmanager.yml" <<CONF
route: {receiver: told, group_by: ["..."], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}
receivers:
  - name: told
    webhook_configs: [{url: "http://127.0.0.1:$webhook_port/unsigned-alertmanager", send_resolved: true}]
CONF
    launch webhook "$venv/bin/python" "$here/receivers/webhook.py" "$webhook_port"
    launch smtp "$venv/bin/python" "$here/receivers/smtp.py" "$base" "$smtp_port" "$smtps_port" "$user" "$password"
    launch alertmanager prometheus-alertmanager --config.file="$base/alertmanager.yml" --storage.path="$base/alertmanager.data" \
        --cluster.listen-address= --web.listen-address="127.0.0.1:$alertmanager_port"
    wait_for webhook answers "http://127.0.0.1:$webhook_port/nobody"
    wait_for smtp listens "$smtps_port"
    wait_for alertmanager answers "http://127.0.0.1:$alertmanager_port/-/ready"
    echo "webhooks http://127.0.0.1:$webhook_port, mail 127.0.0.1:$smtp_port and $smtps_port, Alertmanager http://127.0.0.1:$alertmanager_port"
    ;;
install) ;;
stop) halt webhook smtp alertmanager ;;
status) report webhook smtp alertmanager ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
