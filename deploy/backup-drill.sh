#!/usr/bin/env bash
# Proves that a backup can be restored: takes one of a service while it runs, restores it into a scratch place, checks
# what came back, and says how long each step took. The service and its files are only read.
#
# Exit status: 0 all is well; 1 something differs, is damaged or is missing; 2 it could not be tried: an argument, a
# setting, a program or a file that it needs, or a server that is away or lets nobody in, before or in the middle of it.
# Needs beampipe (or $BEAMPIPE), python3, and for a log on PostgreSQL its client programs, no older than the server.
set -euo pipefail
export LC_ALL=C

usage="usage: backup-drill.sh [--config FILE] [--state-dir DIR] [--artifacts DIR] [--also PATH]... [--into DIR]
                       [--scratch postgres://USER@HOST/DATABASE [--scratch-password FILE]]

  --config, --state-dir  as the service has them; its other settings are taken from the environment, too
  --artifacts DIR        where the artifacts are, if the settings do not say a directory (a mounted or restored copy)
  --also PATH            what else belongs to a backup: configuration, key material, certificates; may be repeated
  --into DIR             keeps the backup there (a directory that does not exist yet); else all is removed at the end
  --scratch URL          for a log on PostgreSQL: who may make a database, and where; else as the service connects"

beampipe=${BEAMPIPE:-beampipe}
artifacts='' into='' scratch_url='' scratch_password='' also=()
say() { printf 'drill: %s\n' "$*"; }
cannot() { printf 'drill: %s\n' "$*" >&2 && exit 2; }
trap 'cannot "it ended early, in line $LINENO"' ERR
while (($#)); do
    case $1 in
    -h | --help) printf '%s\n' "$usage" && exit ;;
    --config | --state-dir | --artifacts | --also | --into | --scratch | --scratch-password)
        [[ -n ${2:-} ]] || cannot "$1 has no value
$usage"
        ;;&
    --config) export BEAMPIPE_CONFIG=$2 ;;
    --state-dir) export BEAMPIPE_STATE_DIR=$2 ;;
    --artifacts) artifacts=$2 ;;
    --also) also+=("$(realpath -e -- "$2")") || cannot "--also $2 is not there" ;;
    --into) into=$2 ;;
    --scratch) scratch_url=$2 ;;
    --scratch-password) scratch_password=$2 ;;
    *) cannot "$1 is nothing that it knows
$usage" ;;
    esac
    shift 2
done

wrong=0
began=$EPOCHREALTIME
seconds_since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.2f", to - from }'; }
step() { # what it is, command: what it says is shown when it fails
    local what=$1 start=$EPOCHREALTIME rc=0
    shift
    "$@" >"$work/said" 2>&1 || rc=$?
    printf 'drill: %-52s %9s s  %s\n' "$what" "$(seconds_since "$start")" "$( ((rc)) && echo FAILED || tail -n 1 "$work/said")"
    if ((rc)); then
        sed 's/^/drill:   /' "$work/said" >&2
        wrong=1
    fi
    return $rc
}
must() { step "$@" || finish; } # without it nothing after it means anything

needs() {
    local program
    for program in "$@"; do command -v "$program" >/dev/null || cannot "$program is not installed"; done
}
needs "$beampipe" python3

# --- What the service is told ---------------------------------------------------------------------------------------

settings=$("$beampipe" config explain -o json) || cannot "the settings of the service cannot be read"
setting() { # name: its value, or nothing
    python3 -c 'import json, sys
for row in json.load(sys.stdin):
    if row["name"] == sys.argv[1] and row["value"] is not None:
        print(row["value"])' "$1" <<<"$settings"
}
state_dir=$(setting state_dir)
log_url=$(setting log.url)
if [[ -z $artifacts ]]; then
    artifacts=$(setting artifacts.url)
    case $artifacts in
    '') artifacts=$state_dir/artifacts ;;
    file:*) artifacts=${artifacts#file:} && artifacts=${artifacts#//} ;;
    *://*) cannot "artifacts are kept at ${artifacts%%\?*}: copy them with the means of that store and name the copy with --artifacts" ;;
    esac
fi
[[ -d $artifacts ]] || cannot "there is no directory $artifacts: name the artifacts with --artifacts"

umask 077 # hashes of passwords are in a log
work=$(mktemp -d "${TMPDIR:-/tmp}/beampipe-drill.XXXXXX") || cannot "there is no scratch place: name one with TMPDIR"
made=
clean_up() {
    local rc=$?
    trap - EXIT ERR
    [[ -z $made ]] || at_scratch asks "$scratch_server" "DROP DATABASE IF EXISTS $database WITH (FORCE)" || {
        say "the database $database is left behind" >&2
        rc=$((rc ? rc : 1))
    }
    rm -rf -- "$work" || true
    exit $rc
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
finish() {
    ((wrong == 0)) || still_there
    [[ -z $into ]] || say "the backup is in $backup"
    say "$( ((wrong)) && echo FAILED || echo 'all is well') after $(seconds_since "$began") s"
    exit $wrong
}

backup=$work/backup scratch=$work/scratch
if [[ -n $into ]]; then
    mkdir -- "$into" || cannot "--into names a directory that does not exist yet"
    backup=$(realpath -- "$into")
fi
mkdir -p "$backup" "$scratch" || cannot "there is no room for the backup"

# --- One engine, and the other ----------------------------------------------------------------------------------------

# How libpq is told to do what beampipe does with an address: who is not on this machine is asked over TLS, and its
# certificate and name are checked against sslrootcert or what this machine believes (src/log/postgres/target.rs). Five
# lines: the address without what is said elsewhere, its schema, sslmode, sslrootcert, and what of these it said itself.
reach() {
    python3 - "$1" "$work/authorities.pem" <<'PYTHON'
import glob, ipaddress, os, sys
from urllib.parse import unquote

address, bundle = sys.argv[1:]
base, _, query = address.partition("?")
ours, theirs, hosts = {}, [], []
for parameter in filter(None, query.split("&")):
    name, equals, value = parameter.partition("=")
    if equals and name in ("schema", "sslmode", "sslrootcert"):
        ours[name] = value
    else:
        theirs.append(parameter)
        if name == "host":
            hosts += unquote(value).split(",")
servers = base.partition("://")[2].partition("/")[0]
servers = servers.partition("@")[2] if "@" in servers else servers
if servers or not hosts:
    hosts += [unquote(s[1:].partition("]")[0] if s[:1] == "[" else s.partition(":")[0]) for s in servers.split(",")]

def near(host):
    if host == "localhost" or host.startswith("/"):
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return ip == ipaddress.ip_address("::1") or ip.version == 4 and ip.is_loopback

mode, roots = ours.get("sslmode"), ours.get("sslrootcert")
if mode not in (None, "disable", "require", "verify-full"):
    sys.exit(f"sslmode {mode!r} is neither disable, require nor verify-full")
if mode is None:
    mode = "disable" if roots is None and all(map(near, hosts)) else "verify-full"
if mode == "disable":
    roots = ""
elif roots is not None:
    roots = os.path.abspath(roots)
else:
    told = [os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")]
    files = [told[0]] if told[0] else []
    for directory in (told[1] or "").split(":"):
        files += glob.glob(os.path.join(glob.escape(directory), "[0-9a-f]" * 8 + ".[0-9]*")) if directory else []
    if not any(told):
        usual = ["certs/ca-certificates.crt", "../pki/tls/certs/ca-bundle.crt", "ca-bundle.pem", "cert.pem"]
        files = [file for file in (f"/etc/ssl/{name}" for name in usual) if os.path.isfile(file)][:1]
    try:
        believed = b"\n".join(open(file, "rb").read() for file in files)
    except OSError as error:
        sys.exit(f"this machine's authorities cannot be read: {error}")
    if not believed:
        sys.exit("this machine has no list of authorities: say in the address with sslrootcert=FILE who is believed")
    with open(bundle, "wb") as out:
        out.write(believed)
    roots = bundle
if mode != "disable" and not os.access(roots, os.R_OK):
    sys.exit(f"sslrootcert {roots} cannot be read")
print(base + ("?" + "&".join(theirs) if theirs else ""))
print(ours.pop("schema", "beampipe"))
print("disable" if mode == "disable" else "verify-full")
print(roots)
print("".join(f"&{name}={value}" for name, value in ours.items()))
PYTHON
}
as_beampipe() ( # sslmode, sslrootcert, password, which of several hosts, program…
    # Nothing of the environment leads it elsewhere or weakens it, and GSSAPI does not come before TLS.
    unset "${!PGSSL@}" PGREQUIRESSL PGHOST PGHOSTADDR PGPORT PGDATABASE PGSERVICE PGOPTIONS
    # In variables and not in arguments: those, everybody sees.
    export PGSSLMODE=$1 PGSSLROOTCERT=$2 PGPASSWORD=$3 PGTARGETSESSIONATTRS=$4 PGGSSENCMODE=disable PGCONNECT_TIMEOUT=10
    shift 4
    "$@"
)
at_log() { as_beampipe "$log_mode" "$log_roots" "$log_secret" any "$@"; }
at_scratch() { as_beampipe "$scratch_mode" "$scratch_roots" "$scratch_secret" read-write "$@"; }
asks() { psql -X -q -At -w -v ON_ERROR_STOP=1 -d "$1" -c "$2"; }

dump_postgres() { at_log pg_dump -w -d "$log_server" --schema="$schema" -Fc -f "$backup/log.pgdump" --exclude-table-data="$schema.beats"; }
restore_postgres() { at_scratch pg_restore -w -d "$restored_server" --no-owner --no-privileges --exit-on-error "$backup/log.pgdump"; }
still_there() { # after something went wrong: a server that is away has said nothing about the backup
    [[ $engine == postgres ]] || return 0
    at_log asks "$log_server" 'SELECT 1' >/dev/null || cannot "the server of the log is away: nothing is proven"
    at_scratch asks "$scratch_server" 'SELECT 1' >/dev/null || cannot "the scratch server is away: nothing is proven"
}

case $log_url in
postgres://* | postgresql://*)
    engine=postgres
    needs psql pg_dump pg_restore
    reached=$(reach "$log_url") || cannot "log.url: it cannot be reached as the service does"
    mapfile -t way <<<"$reached"
    log_server=${way[0]} schema=${way[1]} log_mode=${way[2]} log_roots=${way[3]-}
    log_secret=${PGPASSWORD:-}
    file=$(setting log.password.file) variable=$(setting log.password.env)
    [[ -z $file ]] || log_secret=$(cat -- "$file") || cannot "the password of the log cannot be read"
    [[ -z $variable ]] || log_secret=${!variable-}
    reached=$(reach "${scratch_url:-$log_url}") || cannot "--scratch: it cannot be reached"
    mapfile -t way <<<"$reached"
    scratch_server=${way[0]} scratch_mode=${way[2]} scratch_roots=${way[3]-}
    scratch_secret=$log_secret
    [[ -z $scratch_url ]] || scratch_secret=${PGPASSWORD:-}
    [[ -z $scratch_password ]] || scratch_secret=$(cat -- "$scratch_password") || cannot "--scratch-password cannot be read"
    database=beampipe_drill_$$
    restored_server=$(sed -E "s|^([^/]*//[^/?]*)(/[^?]*)?|\\1/$database|" <<<"$scratch_server")
    restored_log=$restored_server$([[ $restored_server == *\?* ]] && echo '&' || echo '?')schema=$schema${way[4]-}
    theirs=$(at_log asks "$log_server" 'SHOW server_version_num') || cannot "the server of the log lets nobody in"
    own=$(pg_dump --version | grep -oE '[0-9]+' | head -n 1)
    ((own >= theirs / 10000)) || cannot "pg_dump $own is older than the server: $((theirs / 10000))"
    made=1
    at_scratch asks "$scratch_server" "CREATE DATABASE $database TEMPLATE template0 ENCODING 'UTF8'" ||
        { made='' && cannot "no scratch database can be made: name with --scratch who may, and where"; }
    log_files=("$backup/log.pgdump")
    ;;
'' | sqlite:*)
    engine=sqlite
    restored_log=$scratch/events.sqlite
    log_files=("$backup/log.ndjson")
    ;;
*) cannot "log.url: no drill is known for ${log_url%%:*}:" ;;
esac

original() { "$beampipe" log "$@"; }
restored() ( # a verb on the restored log, with nothing of the original's settings
    unset BEAMPIPE_CONFIG BEAMPIPE_LOG__URL BEAMPIPE_LOG__PASSWORD
    if [[ $engine == postgres && -n $scratch_secret ]]; then
        # In a variable and not in an argument: those, everybody sees.
        export DRILL_SECRET=$scratch_secret BEAMPIPE_LOG__PASSWORD='{env="DRILL_SECRET"}'
    fi
    "$beampipe" "$@" --log "$restored_log"
)

# --- Checks ---------------------------------------------------------------------------------------------------------

copy_artifacts() {
    mkdir -p "$backup/artifacts"
    # What is half written has another name until it is whole.
    (cd -- "$artifacts" && find . -type f -name '[0-9a-f]*' ! -name '*#*' -print0 | tar --null --no-recursion -cf - -T -) | tar -xf - -C "$backup/artifacts"
    find "$backup/artifacts" -type f | wc -l | sed 's/$/ artifacts/'
}
check_artifacts() { # every artifact is what its name says, and every one that an event cites is there
    python3 - "$scratch/artifacts" "$work/restored.ndjson" <<'PYTHON'
import base64, hashlib, json, pathlib, sys

wrong = []
there = set()
for file in pathlib.Path(sys.argv[1]).rglob("*"):
    if file.is_file():
        there.add(file.name)
        if hashlib.sha256(file.read_bytes()).hexdigest() != file.name:
            wrong.append(f"artifact {file.name} is damaged: its bytes do not have its digest")

def cited(value):
    if isinstance(value, dict):
        if "media_type" in value and "sha256" in value:
            yield value["sha256"]
        if value.get("metadata_sha256"):
            yield value["metadata_sha256"]
        for inner in value.values():
            yield from cited(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from cited(inner)

wanted = {}
for line in open(sys.argv[2], "rb"):
    event = json.loads(line)
    if event["data"] is not None:
        for digest in cited(json.loads(base64.b64decode(event["data"]))):
            wanted.setdefault(digest, f"{event['stream']} revision {event['revision']} ({event['type']})")
wrong += [f"artifact {digest}, cited by {wanted[digest]}, is missing" for digest in sorted(wanted.keys() - there)]
print("\n".join(wrong) or f"{len(there)} artifacts, {len(wanted)} cited")
sys.exit(1 if wrong else 0)
PYTHON
}
export_restored() { restored log export - >"$work/restored.ndjson" && wc -l <"$work/restored.ndjson" | sed 's/$/ events/'; }
same_as_original() {
    # Whatever was appended meanwhile comes after it.
    cmp "$work/restored.ndjson" <(original export - 2>/dev/null | head -c "$(stat -c %s "$work/restored.ndjson")")
}
copy_also() { mkdir -p "$1" && tar -C / -cf - -- "${also[@]#/}" | tar -xpf - -C "$1" && echo "${#also[@]} named with --also"; }
check_also() {
    local path
    for path in "${also[@]}"; do diff -r -- "$path" "$backup/also$path"; done
}

# --- The drill ------------------------------------------------------------------------------------------------------

say "log ${log_url:-$state_dir/events.sqlite} ($engine), artifacts $artifacts"
# The log before the artifacts: an artifact is durable before an event cites it, so none that is cited can be missing.
if [[ $engine == postgres ]]; then
    must "backup: log (pg_dump)" dump_postgres
else
    must "backup: log (export)" original export "${log_files[0]}"
fi
must "backup: artifacts" copy_artifacts
((${#also[@]} == 0)) || must "backup: configuration and keys" copy_also "$backup/also"
say "the backup has $(du -sh --apparent-size "$backup" | cut -f1)"

if [[ $engine == postgres ]]; then
    must "restore: log (pg_restore)" restore_postgres
else
    must "restore: log (import)" restored log import "${log_files[0]}"
fi
must "restore: artifacts" cp -a -- "$backup/artifacts" "$scratch/artifacts"

step "check: log verify" restored log verify || true
must "restore: read models (folded from the log)" restored projections rebuild --all --offline --state-dir "$scratch"
step "check: projections verify" restored projections verify --state-dir "$scratch" || true
must "check: the restored log can be exported" export_restored
step "check: it is what the original log says" same_as_original || true
step "check: artifacts" check_artifacts || true
((${#also[@]} == 0)) || step "check: configuration and keys" check_also || true
finish
