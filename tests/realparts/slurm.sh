#!/usr/bin/env bash
# A real single-node Slurm with accounting on loopback: munge, MariaDB, slurmdbd, slurmctld, slurmd.
# Needs root, because jobs run as the job user; neither systemd nor cgroups, so memory is counted and not enforced.
set -euo pipefail
umask 022

parts="munged sql slurmdbd slurmctld slurmd"
usage="usage: slurm.sh install | start | stop | start-PART | stop-PART | status; a PART is one of: $parts"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"

# Below nobody's home: the job user reads the configuration and talks to munge's socket.
base=${REALPARTS_SHARED_DIR:-/var/tmp/beampipe-realparts-$EUID}/slurm
ctld=${SLURM_CTLD_PORT:-6817} slurmd=${SLURM_SLURMD_PORT:-6818} dbd=${SLURM_DBD_PORT:-6819}
sql=${SLURM_SQL_PORT:-13306}
# Need not be there in truth.
cpus=${SLURM_NODE_CPUS:-4} mem=${SLURM_NODE_MEM_MB:-8000}
# Seconds that an ended job stays in squeue -t all.
min_age=${SLURM_MIN_JOB_AGE:-300}
name=$(hostname -s)
conf=$base/etc/slurm.conf run=$base/run log=$base/log
export SLURM_CONF=$conf

configure() {
    mkdir -p "$base"/{etc,run,log,state,spool,sql,munge}
    chmod 755 "$base" "$base/etc" "$run" "$log"
    chmod 700 "$base"/{munge,state,sql}
    [[ -s $base/munge/key ]] || (umask 077; head -c 1024 /dev/urandom >"$base/munge/key")
    cat >"$conf.new" <<CONF
ClusterName=testcluster
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$ctld
SlurmdPort=$slurmd
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$run/munge.socket
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool
SlurmctldPidFile=$run/slurmctld.own.pid
SlurmdPidFile=$run/slurmd.own.pid
SlurmctldLogFile=$log/slurmctld.log
SlurmdLogFile=$log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
KillWait=5
EnforcePartLimits=ALL
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2,sched_min_interval=100000
MinJobAge=$min_age
JobCompType=jobcomp/filetxt
JobCompLoc=$log/jobcomp.txt
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$dbd
AccountingStoragePass=$run/munge.socket
AccountingStoreFlags=job_comment,job_script
NodeName=$name NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$mem State=UNKNOWN
PartitionName=work Nodes=$name Default=YES MaxTime=1-00:00:00 DefaultTime=10 State=UP
PartitionName=debug Nodes=$name MaxTime=10 DefaultTime=1 State=UP
CONF
    mv "$conf.new" "$conf"
    # slurmd looks for cgroups even where nothing uses them; this plugin does not mind that there are none.
    echo CgroupPlugin=cgroup/v1 >"$base/etc/cgroup.conf"
    (
        umask 077
        cat >"$base/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$run/munge.socket
DbdHost=$name
DbdAddr=127.0.0.1
DbdPort=$dbd
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$sql
StorageUser=slurm
StoragePass=slurm
PidFile=$run/slurmdbd.own.pid
LogFile=$log/slurmdbd.log
CONF
    )
}

as_sql_root() { mariadb --no-defaults --socket="$run/sql.socket" -u root "$@"; }

start_munged() {
    launch munged munged -F --force --key-file="$base/munge/key" --socket="$run/munge.socket" \
        --pid-file="$run/munged.own.pid" --log-file="$log/munged.log" --seed-file="$base/munge/seed"
    wait_for munged munge --socket="$run/munge.socket" -n
}
start_sql() {
    [[ -e $base/sql/complete ]] || {
        rm -rf "$base/sql"
        mkdir -m 700 "$base/sql"
        mariadb-install-db --no-defaults --datadir="$base/sql" --user=root --skip-test-db \
            --auth-root-authentication-method=normal >"$log/sql-install.out" 2>&1
        touch "$base/sql/complete"
    }
    launch sql mariadbd --no-defaults --datadir="$base/sql" --user=root --bind-address=127.0.0.1 \
        --port="$sql" --socket="$run/sql.socket" --pid-file="$run/sql.own.pid" \
        --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --performance-schema=off
    wait_for sql as_sql_root -e 'select 1'
    as_sql_root -e "create user if not exists slurm@127.0.0.1 identified by 'slurm';
                    grant all on slurm_acct_db.* to slurm@127.0.0.1;"
}
start_slurmdbd() {
    launch slurmdbd slurmdbd -D -s
    # Debian's MariaDB was seen to crash while slurmdbd made its tables for the first time. It recovers, and they are made then.
    wait_for slurmdbd sacctmgr -n show cluster || {
        say "slurmdbd did not come up; once more, with its database"
        running sql || start_sql
        launch slurmdbd slurmdbd -D -s
        wait_for slurmdbd sacctmgr -n show cluster
    }
    sacctmgr -i -Q add cluster testcluster >/dev/null 2>&1 || true
}
start_slurmctld() {
    launch slurmctld slurmctld -D -s
    wait_for slurmctld scontrol ping
}
start_slurmd() {
    launch slurmd slurmd -D -s
    wait_for slurmd bash -c "sinfo -h -o %T | grep -Eq '^(idle|mixed|allocated|completing)$'"
}

end_jobs() { # a job outlives slurmd, and then nobody ends it
    running slurmctld && running slurmd && running munged || return 0
    timeout 10 squeue -h -o %A | xargs -r timeout 10 scancel || return 0
    for _ in {1..40}; do
        [[ -n $(timeout 5 squeue -h -o %A) ]] || return 0
        sleep 0.5
    done
}

known() { [[ " $parts " == *" $1 "* ]] || fail "$usage"; }

case ${1:-} in
install | start) apt_install slurm-wlm slurmdbd slurm-client munge mariadb-server ;;&
stop) [[ -d $run ]] || exit 0 ;;&
start* | stop*) ((EUID == 0)) || fail "Slurm runs jobs as another user, so slurm.sh $1 needs root" ;;&
start)
    configure
    for part in $parts; do "start_$part"; done
    echo "Slurm testcluster up: export SLURM_CONF=$conf"
    ;;
start-*) known "${1#start-}" && "start_${1#start-}" ;;
stop)
    end_jobs
    halt slurmd slurmctld slurmdbd sql munged
    ;;
stop-*) known "${1#stop-}" && halt "${1#stop-}" ;;
install) ;;
status) report munged sql slurmdbd slurmctld slurmd && sinfo ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
