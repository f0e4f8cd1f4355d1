#!/usr/bin/env bash
# Proves that a backup can be restored: takes one of a service while it runs, restores it into a scratch place, checks
# what came back, and says how long each step took. The service and its files are only read.
#
# Exit status: 0 all is well; 1 something differs, is damaged or is missing; 2 it could not be tried.
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
while (($#)); do
    case $1 in
    --config) export BEAMPIPE_CONFIG=${2:?$usage} ;;
    --state-dir) export BEAMPIPE_STATE_DIR=${2:?$usage} ;;
    --artifacts) artifacts=${2:?$usage} ;;
    --also) also+=("$(realpath -e -- "${2:?$usage}")") || exit 2 ;;
    --into) into=${2:?$usage} ;;
    --scratch) scratch_url=${2:?$usage} ;;
    --scratch-password) scratch_password=${2:?$usage} ;;
    -h | --help) printf '%s\n' "$usage" && exit ;;
    *) printf '%s\n' "$usage" >&2 && exit 2 ;;
    esac
    shift 2
done

say() { printf 'drill: %s\n' "$*"; }
cannot() { printf 'drill: %s\n' "$*" >&2 && exit 2; }

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
work=$(mktemp -d "${TMPDIR:-/tmp}/beampipe-drill.XXXXXX")
database=
clean_up() {
    local rc=$?
    trap - EXIT
    [[ -z $database ]] || on_scratch -c "DROP DATABASE IF EXISTS $database WITH (FORCE)" || rc=1
    rm -rf -- "$work"
    exit $rc
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
finish() {
    [[ -z $into ]] || say "the backup is in $backup"
    say "$( ((wrong)) && echo FAILED || echo 'all is well') after $(seconds_since "$began") s"
    exit $wrong
}

backup=$work/backup scratch=$work/scratch
if [[ -n $into ]]; then
    mkdir -- "$into" || cannot "--into names a directory that does not exist yet"
    backup=$(realpath -- "$into")
fi
mkdir -p "$backup" "$scratch"

# --- One engine, and the other ----------------------------------------------------------------------------------------

# What other programs connect to: the schema is a word of ours.
without_schema() { sed -E 's/([?&])schema=[^&]*(&|$)/\1/; s/[?&]$//' <<<"$1"; }
on_scratch() { PGOPTIONS='-c client_min_messages=warning' PGPASSWORD=$scratch_secret psql -X -q -v ON_ERROR_STOP=1 -d "$scratch_server" "$@"; }

dump_postgres() { PGPASSWORD=$log_secret pg_dump -d "$log_server" --schema="$schema" -Fc -f "$backup/log.pgdump" --exclude-table-data="$schema.beats"; }
restore_postgres() {
    on_scratch -c "CREATE DATABASE $database TEMPLATE template0 ENCODING 'UTF8'" &&
        PGPASSWORD=$scratch_secret pg_restore -d "$restored_server" --no-owner --no-privileges --exit-on-error "$backup/log.pgdump"
}

case $log_url in
postgres://* | postgresql://*)
    engine=postgres
    log_server=$(without_schema "$log_url")
    schema=$(sed -nE 's/.*[?&]schema=([^&]*).*/\1/p' <<<"$log_url")
    schema=${schema:-beampipe}
    log_secret=${PGPASSWORD:-}
    file=$(setting log.password.file) variable=$(setting log.password.env)
    [[ -z $file ]] || log_secret=$(cat -- "$file")
    [[ -z $variable ]] || log_secret=${!variable}
    scratch_server=$(without_schema "${scratch_url:-$log_url}")
    scratch_secret=$log_secret
    [[ -z $scratch_url ]] || scratch_secret=${PGPASSWORD:-}
    [[ -z $scratch_password ]] || scratch_secret=$(cat -- "$scratch_password")
    database=beampipe_drill_$$
    restored_server=$(sed -E "s|^([^/]*//[^/?]*)(/[^?]*)?|\\1/$database|" <<<"$scratch_server")
    restored_log=$restored_server$([[ $restored_server == *\?* ]] && echo '&' || echo '?')schema=$schema
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
