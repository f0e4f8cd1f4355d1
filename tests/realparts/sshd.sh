#!/usr/bin/env bash
# A login node on loopback: SSH and SFTP for one unprivileged job user, whom two state directories may share.
# Needs root, because it starts sessions of another user.
set -euo pipefail
umask 022

usage="usage: sshd.sh install | start | stop | status"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"

base=${REALPARTS_DIR:-$cache}/sshd
shared=${REALPARTS_SHARED_DIR:-/var/tmp/beampipe-realparts-$EUID}
port=${SSHD_PORT:-2222} user=${SSHD_USER:-hpcuser}
run=$base/run log=$base/log
# In the user's home, because sshd trusts no file below a directory that anybody may write to; one for each server.
authorized=.ssh/realparts-$port

make_job_user() {
    # '*' means "no password": unlike '!', sshd does not take it for a locked account.
    id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash --password '*' "$user" ||
        id "$user" >/dev/null # two parts may be at it at the same time
}

make_keys() {
    local kind
    # Not every ecdsa key of 256 bits can be read by every client: those of 384 can.
    [[ -s $base/client_ecdsa ]] || ssh-keygen -q -t ecdsa -b 384 -N '' -C realparts-client -f "$base/client_ecdsa"
    for kind in ed25519 ecdsa rsa; do
        [[ -s $base/host_$kind ]] || ssh-keygen -q -t "$kind" -N '' -C "realparts-host" -f "$base/host_$kind"
        [[ -s $base/client_$kind ]] || ssh-keygen -q -t "$kind" -N '' -C "realparts-client" -f "$base/client_$kind"
        echo "[127.0.0.1]:$port,[localhost]:$port $(cut -d' ' -f1,2 "$base/host_$kind.pub")"
    done >"$base/known_hosts"
}

case ${1:-} in
install | start) apt_install openssh-server openssh-client ;;&
stop) [[ -d $run ]] || exit 0 ;;&
start | stop) ((EUID == 0)) || fail "sshd starts sessions of another user, so sshd.sh $1 needs root" ;;&
start)
    mkdir -p "$run" "$log" /run/sshd
    chmod 700 "$base"
    make_job_user
    home=$(getent passwd "$user" | cut -d: -f6)
    make_keys
    install -d -o "$user" -g "$user" -m 700 "$home/.ssh"
    cat "$base"/client_*.pub >"$base/authorized_keys"
    install -o "$user" -g "$user" -m 600 "$base/authorized_keys" "$home/$authorized"
    # What tests leave on the login node; down.sh --remove takes it away with the rest.
    install -d -m 755 "$shared"
    install -d -o "$user" -g "$user" -m 755 "$shared/hpc"
    # Found first on the login node: a test may put something before sbatch or squeue.
    install -d -m 755 "$shared/front"
    # MaxSessions is left as sites have it. Forwarding is for the test of a jump host, which is this server as well.
    cat >"$base/sshd_config" <<CONF
ListenAddress 127.0.0.1
Port $port
HostKey $base/host_ed25519
HostKey $base/host_ecdsa
HostKey $base/host_rsa
PidFile $run/sshd.own.pid
AllowUsers $user
AuthorizedKeysFile $authorized
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
AllowTcpForwarding local
PermitOpen 127.0.0.1:$port localhost:$port
X11Forwarding no
PrintMotd no
MaxStartups 200
LogLevel VERBOSE
SetEnv SLURM_CONF=$shared/slurm/etc/slurm.conf PATH=$shared/front:/usr/local/bin:/usr/bin:/bin
Subsystem sftp internal-sftp
CONF
    launch sshd /usr/sbin/sshd -D -e -f "$base/sshd_config"
    wait_for sshd bash -c "ssh-keyscan -T 1 -p $port 127.0.0.1 2>/dev/null | grep -q ed25519"
    echo "ssh -i $base/client_ed25519 -o UserKnownHostsFile=$base/known_hosts -p $port $user@127.0.0.1"
    ;;
stop)
    halt sshd
    home=$(getent passwd "$user" | cut -d: -f6) || exit 0
    rm -f "${home:?}/$authorized"
    ;;
install) ;;
status) report sshd ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
