#!/bin/sh
# Has wheels work on a fresh Debian that knows no compiler; see try_wheel.sh:
#
#     packaging/try_on_debian.sh RELEASE FOLDER WHEEL...
#
# The Debian stays in FOLDER/RELEASE. Needs root and debootstrap.
set -eu
release=$1
root=$2/$1
shift 2

if [ ! -e "$root/complete" ]; then
    rm -rf "$root"
    mkdir -p "$root"
    script=/usr/share/debootstrap/scripts/$release
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid  # of a release newer than that
    mirror=$(sed -n 's/^\(URIs:\|deb\) *\(http[^ ]*debian\) *.*/\2/p' /etc/apt/sources.list \
        /etc/apt/sources.list.d/*.sources 2>/dev/null | head -1)
    debootstrap --variant=minbase --include=python3-venv \
        "$release" "$root" "$mirror" "$script"
    touch "$root/complete"
fi
# How this machine reaches the package index, and the demo's model, if it is here.
mkdir -p "$root/wheels" "$root/etc/ssl/certs" "$root/root/.cache/pyllama/models"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp "${XDG_CACHE_HOME:-$HOME/.cache}/pyllama/models"/SmolLM2-*.gguf \
    "$root/root/.cache/pyllama/models/" 2>/dev/null || true
rm -rf "$root/wheels"/*
cp "$@" "$(dirname "$0")/try_wheel.sh" "$root/wheels/"
# The mounts go with the name space.
exec unshare --mount sh -eu -c '
    mount --rbind /proc "$1/proc"
    mount --rbind /dev "$1/dev"
    exec chroot "$1" env HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        sh -c "cat /etc/debian_version; for name in cc gcc clang c++ g++; do
            ! command -v \$name || exit 1; done
            exec sh /wheels/try_wheel.sh python3 /wheels/environment /wheels/*.whl"
' try "$root"
