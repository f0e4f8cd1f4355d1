#!/usr/bin/env bash
# OpenStack Swift from PyPI on loopback, spoken to as S3: a proxy, an account, a container and an object server, one replica,
# signatures checked. Objects are files below STATE_DIR/s3, on a filesystem with extended attributes. Needs no root.
set -euo pipefail

usage="usage: s3.sh install | start | stop | status"
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"

base=${REALPARTS_DIR:-$cache}/s3
port=${S3_PORT:-18333}
run=$base/run log=$base/log
venv=$(venv_for "$here/s3-requirements.txt")
# What the tests sign with; up.sh says the same.
key=test:beampipe secret=beampipe-test bucket=beampipe
declare -A ports=([account]=${S3_ACCOUNT_PORT:-18334} [container]=${S3_CONTAINER_PORT:-18335} [object]=${S3_OBJECT_PORT:-18336})

server_conf() { # name of the server, its port, pipeline
    cat <<CONF
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $2
workers = 0
user = $(id -un)
swift_dir = $base/conf
devices = $base/devices
mount_check = false
log_address = $run/no-syslog
log_level = WARNING
fallocate_reserve = 0
[pipeline:main]
pipeline = $3
CONF
}

configure() {
    local part conf=$base/conf
    mkdir -p "$conf" "$base/devices/disk"
    printf '[swift-hash]\nswift_hash_path_suffix = beampipe-tests\n' >"$conf/swift.conf"
    for part in account container object; do
        {
            server_conf "$part" "${ports[$part]}" "$part-server"
            printf '[app:%s-server]\nuse = egg:swift#%s\nrecon_cache_path = %s\n' "$part" "$part" "$base/recon"
        } >"$conf/$part-server.conf"
        [[ ! -e $conf/$part.ring.gz ]] || continue
        "$venv/bin/swift-ring-builder" "$conf/$part.builder" create 2 1 1 >/dev/null
        "$venv/bin/swift-ring-builder" "$conf/$part.builder" add "r1z1-127.0.0.1:${ports[$part]}/disk" 1 >/dev/null
        # Exit 1 is its warning that one device is not many.
        "$venv/bin/swift-ring-builder" "$conf/$part.builder" rebalance >/dev/null || [[ $? == 1 ]]
    done
    {
        server_conf proxy "$port" "catch_errors proxy-logging cache s3api tempauth copy slo proxy-logging proxy-server"
        cat <<CONF
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_${key/:/_} = $secret .admin
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:cache]
use = egg:swift#memcache
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
CONF
    } >"$conf/proxy-server.conf"
}

serve() { # parts
    local part
    for part in "$@"; do
        launch "$part" "$venv/bin/swift-$part-server" "$base/conf/$part-server.conf"
    done
}

listens() { (exec 7<>"/dev/tcp/127.0.0.1/$1"); }

# Nothing at hand makes a bucket, so here is the one signed request that does (AWS Signature Version 4).
bucket_is_there() {
    python3 - "127.0.0.1:$port" "/$bucket" "$key" "$secret" <<'PYTHON'
import datetime, hashlib, hmac, sys, urllib.error, urllib.request
host, path, key, secret = sys.argv[1:]
now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
scope = [now[:8], "us-east-1", "s3", "aws4_request"]
digest = hashlib.sha256(b"").hexdigest()
headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": now}
listed, signed = "".join(f"{n}:{v}\n" for n, v in headers.items()), ";".join(headers)
request = "\n".join(["PUT", path, "", listed, signed, digest])
words = ["AWS4-HMAC-SHA256", now, "/".join(scope), hashlib.sha256(request.encode()).hexdigest()]
sign = ("AWS4" + secret).encode()
for word in scope + ["\n".join(words)]:
    sign = hmac.new(sign, word.encode(), hashlib.sha256).digest()
headers["authorization"] = (
    f"AWS4-HMAC-SHA256 Credential={key}/{'/'.join(scope)}, SignedHeaders={signed}, Signature={sign.hex()}"
)
try:
    request = urllib.request.Request(f"http://{host}{path}", method="PUT", headers=headers)
    urllib.request.urlopen(request, timeout=5)
except urllib.error.HTTPError as error:
    sys.exit(error.code != 409)  # 409: it was there
PYTHON
}

case ${1:-} in
install | start)
    apt_install python3-venv
    venv_install "$venv" "$here/s3-requirements.txt"
    ;;&
start)
    mkdir -p "$run" "$log"
    configure
    serve account container object proxy
    for part in account container object; do wait_for "$part" listens "${ports[$part]}"; done
    wait_for proxy listens "$port"
    wait_for proxy bucket_is_there
    echo "S3 http://127.0.0.1:$port/$bucket"
    ;;
install) ;;
stop) halt proxy object container account ;;
status) report proxy object container account ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
