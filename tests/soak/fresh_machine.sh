#!/usr/bin/env bash
# fresh_machine.sh RELEASE [SUITE]: a bare Debian of that release, a new user in it who types `./vapor test SUITE`,
# and the list of what the machine lacked. Root; takes minutes. Called by `./vapor soak`.
#
# The root is a directory; its mounts and processes live in namespaces of their own and end with this script. How
# this machine reaches apt's and pip's sources (mirror, proxy, extra authorities) is copied at run time.
# shellcheck disable=SC2016,SC2317 # text for dpkg, apt and the newcomer's shell; functions called in a new namespace
set -euo pipefail

release=${1:?"RELEASE, e.g. bookworm"}
suite=${2:-unit}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
work=$(mktemp -d "${TMPDIR:-/var/tmp}/vapor-fresh-$release.XXXXXX")
root=$work/root
home=$root/home/newcomer
trap 'rm -rf --one-file-system -- "$work"' EXIT

# --- how this machine reaches its sources ------------------------------------------------------------------------
mirror_of() { # LABEL DEFAULT: the Debian mirror that apt uses here
    local found
    found=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n "s/^Debian|$1|//p" | head -n 1)
    printf '%s' "${found:-$2}"
}

sources() {
    local main security
    main=$(mirror_of Debian http://deb.debian.org/debian)
    security=$(mirror_of Debian-Security http://deb.debian.org/debian-security)
    printf 'deb [signed-by=%s] %s %s main\n' \
        "$keyring" "$main" "$release" "$keyring" "$main" "$release-updates" "$keyring" "$security" "$release-security"
}

pip_settings() { # one "key=value" a line, from files and environment alike; lists are joined by blanks
    "$here/.venv/bin/python" -m pip config list | "$here/.venv/bin/python" -c '
import ast, sys
for line in sys.stdin:
    key, _, value = line.rstrip("\n").partition("=")
    print(key.rpartition(".")[2], " ".join(ast.literal_eval(value).split()), sep="=")
' | sort -u
}

local_indexes() { # directories that pip reads packages from, on this machine
    pip_settings | sed -n 's/^\(extra-index-url\|index-url\|find-links\)=//p' | tr ' ' '\n' |
        sed -n 's,^file://,,; s,/simple/*$,,; /^\//p' | sort -u
}

# --- the machine -------------------------------------------------------------------------------------------------
build() {
    local options=() line
    while IFS= read -r line; do options+=(--aptopt="$line"); done \
        < <(apt-config dump | grep -iE '^Acquire::(https?::|Check)' || true)
    # sudo is what a person's own machine has and a minimal root lacks; nothing else is added.
    sources | mmdebstrap --quiet --mode=root --variant=minbase --include=sudo "${options[@]}" "$release" "$root" -
}

settle() {
    local name directory
    chroot "$root" useradd --create-home --shell /bin/bash newcomer
    echo 'newcomer ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/newcomer"
    # Services cannot run here: there is no init. This is how Debian is told.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    cp --dereference /etc/resolv.conf "$root/etc/resolv.conf"
    cp --dereference /etc/hosts "$root/etc/hosts"
    mkdir -p "$root/usr/local/share/ca-certificates"
    find /usr/local/share/ca-certificates -name '*.crt' -exec cp -t "$root/usr/local/share/ca-certificates" {} +
    { echo '[global]' && pip_settings; } >"$root/etc/pip.conf"
    for directory in $(local_indexes); do mkdir -p "$root$directory"; done
    for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
        if [[ -n ${!name:-} ]]; then printf '%s=%q\n' "$name" "${!name}" >>"$root/etc/environment"; fi
    done
}

checkout() { # what is committed, as a clone of it would be
    local owner
    owner=$(stat -c %U "$here")
    runuser -u "$owner" -- git -C "$here" bundle create --quiet - HEAD >"$work/checkout.bundle"
    git clone --quiet "$work/checkout.bundle" "$home/vapor-desktop" 2>/dev/null
    printf 'Commit %s of this checkout' "$(git -C "$home/vapor-desktop" rev-parse --short HEAD)"
    if [[ -n $(runuser -u "$owner" -- git -C "$here" status --porcelain) ]]; then
        printf '; what is not committed here is not in it'
    fi
    printf '.\n'
    chroot "$root" chown -R newcomer: /home/newcomer
}

packages() { chroot "$root" dpkg-query -W -f '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | sort; }

# Runs in namespaces of its own: mounts what every machine has, then becomes the newcomer.
inside() {
    local directory node
    mount --make-rprivate /
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for node in null zero full random urandom tty; do
        touch "$root/dev/$node" && mount --bind "/dev/$node" "$root/dev/$node"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    for directory in $(local_indexes); do mount --bind -o ro "$directory" "$root$directory"; done
    # A login of the newcomer, who inherits nothing of this machine.
    env -i TERM=dumb PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" runuser -l newcomer -c "cd vapor-desktop && $1"
}

in_machine() {
    export -f inside local_indexes pip_settings
    root=$root here=$here unshare --mount --pid --fork --kill-child -- bash -euo pipefail -c 'inside "$1"' - "$1" </dev/null
}

((EUID == 0)) || {
    echo "fresh_machine.sh: needs root" >&2
    exit 1
}
begun=$SECONDS
build
settle
checkout
packages >"$work/before"
echo "A bare $release with $(wc -l <"$work/before") packages, made in $((SECONDS - begun)) s; a newcomer types: ./vapor test $suite -y"
status=0
begun=$SECONDS
in_machine "./vapor test $suite -y" || status=$?
echo "./vapor test $suite on a bare $release: exit $status after $((SECONDS - begun)) s"
packages >"$work/after"
echo "$(comm -13 "$work/before" "$work/after" | wc -l) packages were missing and were installed by ./vapor:"
comm -13 "$work/before" "$work/after" | tr '\n' ' ' | fold -s -w 116
echo
if ((status == 0)); then
    in_machine 'begun=$(date +%s%N); ./vapor setup; echo "./vapor a second time: $((($(date +%s%N) - begun) / 1000000)) ms of set-up"' ||
        status=$?
fi
exit "$status"
