#!/bin/sh
# Installs with apt what the tests need beyond PyPI, when we are root on Debian or Ubuntu. Elsewhere nothing happens: tests
# that miss a tool skip with a reason.
set -eu
missing=""
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need curl curl
need aria2c aria2
need rsync rsync
need sshfs sshfs
need ssh openssh-client
[ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
need nft nftables
need tc iproute2
need b3sum b3sum
need openssl openssl
need shellcheck shellcheck
need busybox busybox
# The fleet test makes hosts of its own, which only root can.
if [ "$(id -u)" = 0 ]; then
    need mmdebstrap mmdebstrap
    need ip iproute2
    need ssh openssh-client
fi
python3 -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "not installed, tests that use them will skip:$missing"
fi
