#!/bin/sh
# Brings a machine that may vanish into a cluster, and keeps its agent running where there is no service manager:
# cloud-init and user-data (AWS, GCP, Azure, Lambda), on-start commands (Vast.ai, RunPod), containers (as PID 1).
#
#   spore-spot.sh start     in the background: install, join, supervise; does nothing when it runs already
#   spore-spot.sh run       the same in the foreground; fit for PID 1
#   spore-spot.sh stop      a last flush, then the end
#   spore-spot.sh status    exit 0 while it runs, 3 otherwise
#
# What it reads from the environment; only SPORE_TOKEN is needed, and only the first time:
#
#   SPORE_TOKEN      of `spore token --ephemeral --uses N` on an issuer
#   SPORE_DIR        the node's folder, on a local disk (/var/lib/spore for root, else ~/.spore)
#   SPORE_NODE       the node's name (from VAST_CONTAINERLABEL, RUNPOD_POD_ID, else the host's name)
#   SPORE_PORT       the port the agent binds (7946)
#   SPORE_ADVERTISE  host:port where others dial it (from Vast.ai's and RunPod's port mappings, and from the metadata
#                    service when SPORE_PUBLIC=1; without one the node dials out only, which is enough)
#   SPORE_PREFIX     where it is installed (/opt/spore for root, else ~/.local/share/spore)
#   SPORE_BUNDLE     a bundle of `make bundle`, a file or an http(s) address: installs without an index
#   SPORE_PACKAGE    what pip installs where there is no bundle (spore-agent); SPORE_INDEX: from which index
#   SPORE_PYTHON     the Python to use (3.11 or later)
#
# Everything else whose name begins with SPORE_ reaches the agent as it is: SPORE_FLUSH_SECONDS, SPORE_PROVIDER, …

set -eu

say() { printf 'spore-spot: %s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

if [ "$(id -u)" = 0 ]; then
    : "${SPORE_DIR:=/var/lib/spore}" "${SPORE_PREFIX:=/opt/spore}"
else
    : "${SPORE_DIR:=$HOME/.spore}" "${SPORE_PREFIX:=$HOME/.local/share/spore}"
fi
# Of a host that the hosts file lists, the file says the port, unless SPORE_PORT does.
[ -z "${SPORE_PORT:-}" ] || : "${SPORE_LISTEN:=0.0.0.0:$SPORE_PORT}"
: "${SPORE_PORT:=7946}" "${SPORE_PACKAGE:=spore-agent}"
SPORE="$SPORE_PREFIX/current/bin/spore"
PID_FILE="$SPORE_DIR/spot.pid"
LOG_FILE="$SPORE_DIR/spot.log"
LOG_BYTES_MAX=16777216 # begun anew at a start above this
JOIN_TRIES=8           # with growing pauses: two minutes for an issuer that is just being restarted
RESTART_SECONDS_MAX=30 # between an agent that ended and the next
STOP_SECONDS_MAX=180   # the longest budget there is, and an exit

# --- where and who ---

find_python() {
    for name in ${SPORE_PYTHON:-} python3.14 python3.13 python3.12 python3.11 python3; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$name"
            return 0
        fi
    done
    return 1
}

# A node's name: a-z, 0-9, '.', '_' and '-', at most 63, beginning and ending with a letter or digit.
node_name() {
    if [ -n "${SPORE_NODE:-}" ]; then
        printf '%s\n' "$SPORE_NODE"
        return
    fi
    if [ -n "${RUNPOD_POD_ID:-}" ]; then
        given="runpod-$RUNPOD_POD_ID"
    elif [ -n "${VAST_CONTAINERLABEL:-}" ]; then
        given="vast-${VAST_CONTAINERLABEL#C.}"
    else
        given=$(hostname 2>/dev/null || cat /proc/sys/kernel/hostname)
    fi
    printf '%s' "$given" | tr '[:upper:]' '[:lower:]' | LC_ALL=C tr -c 'a-z0-9._-' '-' | cut -c1-63 | sed 's/^[^a-z0-9]*//; s/[^a-z0-9]*$//'
}

# Where others reach this machine, by the port mappings that Vast.ai and RunPod put into the environment.
advertised() {
    if [ -n "${SPORE_ADVERTISE:-}" ]; then
        printf '%s\n' "$SPORE_ADVERTISE"
        return
    fi
    eval "mapped=\${VAST_TCP_PORT_$SPORE_PORT:-}"
    # shellcheck disable=SC2154 # assigned by eval
    if [ -n "$mapped" ] && [ -n "${PUBLIC_IPADDR:-}" ]; then
        printf '%s:%s\n' "$PUBLIC_IPADDR" "$mapped"
        return
    fi
    eval "mapped=\${RUNPOD_TCP_PORT_$SPORE_PORT:-}"
    if [ -n "$mapped" ] && [ -n "${RUNPOD_PUBLIC_IP:-}" ]; then
        printf '%s:%s\n' "$RUNPOD_PUBLIC_IP" "$mapped"
        return
    fi
    address=$(public_address) || address=
    [ -z "$address" ] || printf '%s:%s\n' "$address" "$SPORE_PORT"
}

# Asked only when SPORE_PUBLIC says so, and only of the provider that SPORE_PROVIDER or the firmware names.
public_address() {
    [ "${SPORE_PUBLIC:-}" = 1 ] || return 0
    url=${SPORE_METADATA_URL:-http://169.254.169.254}
    case "${SPORE_PROVIDER:-$(firmware)}" in
    aws)
        token=$(ask -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$url/latest/api/token") || return 1
        ask -H "X-aws-ec2-metadata-token: $token" "$url/latest/meta-data/public-ipv4"
        ;;
    gcp)
        ask -H 'Metadata-Flavor: Google' \
            "$url/computeMetadata/v1/instance/network-interfaces/0/access-configs/0/external-ip"
        ;;
    azure)
        ask -H 'Metadata: true' "$url/metadata/instance/network/interface/0/ipv4/ipAddress/0/publicIpAddress?api-version=2021-02-01&format=text"
        ;;
    esac
}

ask() { curl -sSf --noproxy '*' --max-time 5 "$@"; }

firmware() {
    case "$(cat /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name 2>/dev/null || true)" in
    *Amazon*) echo aws ;;
    *Google*) echo gcp ;;
    *Microsoft*) echo azure ;;
    esac
}

# --- installing and joining ---

# Beside its place, then renamed: an install cut short leaves nothing that looks whole.
install_spore() {
    [ ! -x "$SPORE" ] || return 0
    python=$(find_python) || fail "there is no Python 3.11 or later; install one, or name it with SPORE_PYTHON"
    release="$SPORE_PREFIX/releases/spot-$$"
    mkdir -p "$SPORE_PREFIX/releases"
    say "installing with $python into $release"
    "$python" -m venv --without-pip "$release" || fail "$python cannot make a virtual environment (Debian: apt install python3-venv)"
    if [ -n "${SPORE_BUNDLE:-}" ]; then
        unpack_bundle "$release/bundle"
        set -- --no-index --no-deps --require-hashes --find-links "$release/bundle/wheels" -r "$release/bundle/requirements.txt"
    else
        set -- ${SPORE_INDEX:+--index-url "$SPORE_INDEX"} "$SPORE_PACKAGE"
    fi
    pip_for "$release" install --quiet --no-compile --disable-pip-version-check "$@" ||
        { rm -rf "$release"; fail "the install failed; see above"; }
    rm -rf "$release/bundle"
    ln -s "releases/spot-$$" "$SPORE_PREFIX/current.$$"
    mv -T "$SPORE_PREFIX/current.$$" "$SPORE_PREFIX/current"
}

unpack_bundle() {
    mkdir -p "$1"
    case "$SPORE_BUNDLE" in
    http://* | https://*)
        fetched="$1/bundle.tar.gz"
        if command -v curl >/dev/null 2>&1; then
            curl -sSfL "$SPORE_BUNDLE" -o "$fetched"
        else
            "$python" -c 'import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])' "$SPORE_BUNDLE" "$fetched"
        fi || fail "the bundle $SPORE_BUNDLE cannot be fetched"
        ;;
    *) fetched=$SPORE_BUNDLE ;;
    esac
    # Python reads archives everywhere; tar and gzip are not everywhere.
    "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$fetched" "$1" ||
        fail "$SPORE_BUNDLE is no bundle of \`make bundle\`"
}

# The pip of the system or of the bundle, working on the new environment: Debian's Python has none of its own to put there.
pip_for() {
    target=$1
    shift
    if "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip --python "$target/bin/python" "$@"
    elif "$target/bin/python" -m ensurepip >/dev/null 2>&1; then
        "$target/bin/python" -m pip "$@"
    else
        fail "$python has no pip and no ensurepip (Debian: apt install python3-venv)"
    fi
}

join_cluster() {
    [ ! -d "$SPORE_DIR/identity" ] || return 0
    [ -n "${SPORE_TOKEN:-}" ] || fail "SPORE_TOKEN is not set; make one with \`spore token --ephemeral\` on an issuer"
    name=$(node_name)
    try=1
    until printf '%s' "$SPORE_TOKEN" | "$SPORE" join - "$SPORE_DIR" --node "$name"; do
        [ "$try" -lt "$JOIN_TRIES" ] || fail "$name could not join after $try tries; see above"
        sleep "$((try * try))"
        try=$((try + 1))
    done
}

# --- running ---

prepare() {
    mkdir -p "$SPORE_DIR"
    chmod 700 "$SPORE_DIR"
    install_spore
    join_cluster
    unset SPORE_TOKEN
    address=$(advertised)
    if [ -n "$address" ]; then
        export SPORE_ADVERTISE="$address"
    fi
    if [ -n "${SPORE_LISTEN:-}" ]; then
        export SPORE_LISTEN
    fi
}

forward() {
    [ -z "$child" ] || kill -"$1" "$child" 2>/dev/null || true
}

# Starts the agent again when it ends by itself, forwards signals, and ends with it when it was told to.
supervise() {
    child='' stopping='' pause=1
    trap 'stopping=1; forward TERM' TERM INT
    trap 'forward USR1' USR1
    trap 'forward HUP' HUP
    while :; do
        began=$(date +%s)
        "$SPORE" agent "$SPORE_DIR" &
        child=$!
        [ -z "$stopping" ] || forward TERM # it came while the agent was being started
        await_child
        child=
        [ -z "$stopping" ] || exit "$code"
        [ "$code" != 2 ] || fail "the agent cannot run as it is configured (exit 2); see above"
        [ "$(($(date +%s) - began))" -lt 60 ] || pause=1
        say "the agent ended with $code; starting it again in $pause s"
        sleep "$pause" &
        wait $! || true
        [ -z "$stopping" ] || exit 0
        pause=$((pause * 2))
        [ "$pause" -le "$RESTART_SECONDS_MAX" ] || pause=$RESTART_SECONDS_MAX
    done
}

# A signal ends `wait` early, with a code above 128, whether the agent lives on or has just ended: waiting again tells.
await_child() {
    code=0
    wait "$child" || code=$?
    while [ "$code" -gt 128 ]; do
        before=$code code=0
        wait "$child" || code=$?
        [ "$code" != 127 ] || { code=$before && break; } # nothing is left to wait for: that code was its own
    done
}

running_pid() {
    pid=$(cat "$PID_FILE" 2>/dev/null) || return 1
    [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || return 1
    # The number may belong to another process by now.
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q spore-spot || return 1
    printf '%s\n' "$pid"
}

run() {
    mkdir -p "$SPORE_DIR"
    if pid=$(running_pid) && [ "$pid" != $$ ]; then
        fail "it runs already (process $pid)"
    fi
    echo $$ >"$PID_FILE"
    trap 'exit 143' TERM INT # PID 1 would not heed them; nothing is accepted yet
    prepare
    supervise
}

start() {
    if pid=$(running_pid); then
        echo "already running (process $pid)"
        return 0
    fi
    mkdir -p "$SPORE_DIR"
    chmod 700 "$SPORE_DIR"
    if [ "$(wc -c <"$LOG_FILE" 2>/dev/null || echo 0)" -gt "$LOG_BYTES_MAX" ]; then
        mv "$LOG_FILE" "$LOG_FILE.1"
    fi
    if command -v setsid >/dev/null 2>&1; then
        setsid sh "$0" run >>"$LOG_FILE" 2>&1 </dev/null &
    else
        nohup sh "$0" run >>"$LOG_FILE" 2>&1 </dev/null &
    fi
    echo "started; the log is $LOG_FILE"
}

stop() {
    pid=$(running_pid) || { echo "it does not run"; return 0; }
    kill -TERM "$pid"
    waited=0
    while [ "$(running_pid)" = "$pid" ]; do # a zombie that nobody reaps does not run
        [ "$waited" -lt "$STOP_SECONDS_MAX" ] || fail "process $pid did not end within $STOP_SECONDS_MAX s"
        sleep 1
        waited=$((waited + 1))
    done
    echo "stopped"
}

status() {
    if pid=$(running_pid); then
        echo "running (process $pid)"
    else
        echo "not running"
        exit 3
    fi
}

case "${1:-}" in
start) start ;;
run) run ;;
stop) stop ;;
status) status ;;
*) fail "usage: spore-spot.sh start|run|stop|status" ;;
esac
