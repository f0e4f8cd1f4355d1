#!/usr/bin/env bash
# Brings the real servers that tests and the demo talk to, on free loopback ports, in a directory of their own, and
# writes STATE_DIR/env to be sourced. Repeated on the same directory it starts what is missing, on the same ports;
# on other directories it may run at the same time. Interrupted or failed, it stops the parts that it had started; a part of
# which anything ran before goes on running.
#
# Parts: tap, daliuge, postgres, s3, slurm (with a DALiuGE for its jobs), sshd (its login node), receivers (of alerts: webhooks, mail,
# Alertmanager), prometheus=CONFIG.yml, prometheus (installed, a port, not started), python (what the
# tests compare with), tools (promtool, amtool, docker-compose, systemd-analyze). Default: tap daliuge.
#
# slurm and sshd need root. The rest needs root, or sudo, for Debian packages only: python3-venv python3-dev gcc libc6-dev curl (daliuge),
# python3-gavo postgresql-15 and two extensions (tap), pgbouncer iproute2 (postgres), python3-venv (s3), openssl prometheus-alertmanager (receivers), prometheus, docker-compose.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"
state=${1:?usage: up.sh STATE_DIR [tap|daliuge|postgres|s3|slurm|sshd|receivers|prometheus[=CONFIG.yml]|python|tools ...]}
shift
mkdir -p "$state"
state=$(realpath "$state")
(($#)) || set -- tap daliuge
asked=("$@")
began=$SECONDS

exec 9>"$state/up.lock"
flock -w 600 9 || fail "another up.sh is still at work on $state"

# Chosen once for a state directory, so that a server that is stopped and started again is where it was.
touch "$state/ports"
cp "$state/ports" "$state/ports.new"
for name in DLG_TM_PORT DLG_DIM_PORT DLG_NM_PORT DLG_EVENTS_PORT DLG_RPC_PORT TAP_PORT TAP_PG_PORT PROMETHEUS_PORT POSTGRES_PORT \
    POSTGRES_POOL_PORT S3_PORT S3_ACCOUNT_PORT S3_CONTAINER_PORT S3_OBJECT_PORT SLURM_CTLD_PORT SLURM_SLURMD_PORT SLURM_DBD_PORT \
    SLURM_SQL_PORT SSHD_PORT WEBHOOK_PORT SMTP_PORT SMTPS_PORT ALERTMANAGER_PORT; do
    grep -q "^export $name=" "$state/ports" || printf 'export %s=%s\n' "$name" "$(reserve_port "$state")" >>"$state/ports.new"
done
# TAP's servers and PostgreSQL do not run as root, and root's directories may be closed to them.
grep -q '^export REALPARTS_SHARED_DIR=' "$state/ports" ||
    printf 'export REALPARTS_SHARED_DIR=%q\n' "$(mktemp -d /var/tmp/beampipe-tap.XXXXXX)" >>"$state/ports.new"
mv "$state/ports.new" "$state/ports"
. "$state/ports"
chmod 755 "$REALPARTS_SHARED_DIR"
export REALPARTS_DIR=$state
dlg_venv=${DLG_VENV:-$(venv_for "$here/daliuge-requirements.txt")}
jobs_venv=${DLG_JOBS_VENV:-/var/tmp/$(basename "$dlg_venv")-$EUID}
python_venv=$(venv_for "$here/python-requirements.txt")

declare -A ran_before=()
for part in $servers; do
    [[ $("$here/$part.sh" status 2>/dev/null) != *" up, pid "* ]] || ran_before[$part]=1
done

jobs_started=()
undo() {
    trap '' INT TERM
    say "stopping what this call had started in $state" >&2
    local job part
    for job in "${jobs_started[@]}"; do kill -- "-$job" 2>/dev/null || true; done
    wait || true
    for part in "${asked[@]%%=*}"; do
        [[ " $servers " == *" $part "* && -z ${ran_before[$part]:-} ]] || continue
        "$here/$part.sh" stop >&2 &
    done
    wait || true
    rm -f "$state/env.new"
    ((${#ran_before[@]})) || rm -f "$state/env"
}
trap 'undo; exit 130' INT
trap 'undo; exit 143' TERM

cat >"$state/env.new" <<ENV
$(cat "$state/ports")
export REALPARTS_DIR='$state'
export DLG_VENV='$dlg_venv'
export BEAMPIPE_TEST_REALPARTS='$here'
export BEAMPIPE_TEST_TAP_URL='http://127.0.0.1:$TAP_PORT/tap'
export BEAMPIPE_TEST_TM_URL='http://127.0.0.1:$DLG_TM_PORT'
export BEAMPIPE_TEST_DIM_HOST='127.0.0.1'
export BEAMPIPE_TEST_DIM_PORT='$DLG_DIM_PORT'
export BEAMPIPE_TEST_NM_URL='http://127.0.0.1:$DLG_NM_PORT'
export BEAMPIPE_TEST_PROMETHEUS_URL='http://127.0.0.1:$PROMETHEUS_PORT'
export BEAMPIPE_TEST_POSTGRES_URL='postgres://beampipe@127.0.0.1:$POSTGRES_PORT/postgres'
export BEAMPIPE_TEST_POOLER_URL='postgres://beampipe@127.0.0.1:$POSTGRES_POOL_PORT'
export BEAMPIPE_TEST_S3_URL='s3://beampipe/tests'
export BEAMPIPE_TEST_S3_ENDPOINT='http://127.0.0.1:$S3_PORT'
export BEAMPIPE_TEST_S3_KEY='test:beampipe'
export BEAMPIPE_TEST_S3_SECRET='beampipe-test'
export BEAMPIPE_TEST_SSH_HOST='127.0.0.1'
export BEAMPIPE_TEST_SSH_PORT='$SSHD_PORT'
export BEAMPIPE_TEST_SSH_USER='${SSHD_USER:-hpcuser}'
export BEAMPIPE_TEST_SSH_DIR='$state/sshd'
export BEAMPIPE_TEST_SSH_WORK='$REALPARTS_SHARED_DIR/hpc'
export BEAMPIPE_TEST_SSH_FRONT='$REALPARTS_SHARED_DIR/front'
export BEAMPIPE_TEST_SLURM_CONF='$REALPARTS_SHARED_DIR/slurm/etc/slurm.conf'
export BEAMPIPE_TEST_SLURM_VENV='$jobs_venv'
export BEAMPIPE_TEST_WEBHOOK_URL='http://127.0.0.1:$WEBHOOK_PORT'
export BEAMPIPE_TEST_SMTP_PORT='$SMTP_PORT'
export BEAMPIPE_TEST_SMTPS_PORT='$SMTPS_PORT'
export BEAMPIPE_TEST_SMTP_DIR='$state/receivers'
export BEAMPIPE_TEST_SMTP_USER='beampipe'
export BEAMPIPE_TEST_SMTP_PASSWORD='beampipe-test-mail'
export BEAMPIPE_TEST_ALERTMANAGER_URL='http://127.0.0.1:$ALERTMANAGER_PORT'
export BEAMPIPE_TEST_PYTHON='$python_venv/bin/python'
ENV

bring() {
    case $1 in
    tap) "$here/tap.sh" start ;;
    daliuge) "$here/daliuge.sh" start ;;
    postgres) "$here/postgres.sh" start ;;
    s3) "$here/s3.sh" start ;;
    slurm)
        "$here/slurm.sh" start
        "$here/daliuge.sh" install-for-jobs
        ;;
    sshd) "$here/sshd.sh" start ;;
    receivers) "$here/receivers.sh" start ;;
    prometheus) "$here/prometheus.sh" install ;;
    prometheus=*) "$here/prometheus.sh" start "${1#*=}" ;;
    python)
        apt_install python3-venv
        venv_install "$python_venv" "$here/python-requirements.txt"
        ;;
    tools) apt_install prometheus prometheus-alertmanager docker-compose systemd ;;
    *) fail "unknown part $1" ;;
    esac
}

# All at once: Debian packages queue behind one lock, and Python environments fill meanwhile.
# Each is a process group, so that an interrupt ends it whole before its servers are stopped.
declare -A part_of
set -m
for part in "$@"; do
    bring "$part" 9>&- &
    jobs_started+=($!)
    part_of[$!]=$part
done
set +m
failed=()
for job in "${jobs_started[@]}"; do
    wait "$job" || failed+=("${part_of[$job]}")
done
jobs_started=()
if ((${#failed[@]})); then
    undo
    fail "could not bring up: ${failed[*]}"
fi
mv "$state/env.new" "$state/env"
say "up in $((SECONDS - began)) s: $*; . $state/env"
