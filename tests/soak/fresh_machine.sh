#!/usr/bin/env bash
# fresh_machine.sh RELEASE [SUITE]: a bare Debian of that release, a new user in it who types `./vapor test SUITE`,
# and the list of what the machine lacked. Root; takes minutes. Called by `./vapor soak`.
#
# The root is a directory; its mounts and processes live in namespaces of their own and end with this script.
# shellcheck disable=SC2016,SC2317 # text for dpkg, apt and the newcomer's shell; functions called in a new namespace
set -euo pipefail

release=${1:?"RELEASE, e.g. bookworm"}
suite=${2:-unit}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
work=$(mktemp -d "${TMPDIR:-/var/tmp}/vapor-fresh-$release.XXXXXX")
root=$work/root
home=$root/home/newcomer
trap 'rm -rf --one-file-system -- "$work"' EXIT

# shellcheck source=tests/soak/machine.sh
source "$here/tests/soak/machine.sh"

# --- the machine -------------------------------------------------------------------------------------------------
settle() {
    chroot "$root" useradd --create-home --shell /bin/bash newcomer
    echo 'newcomer ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/newcomer"
    reach_sources
}

checkout() {
    committed "$work/checkout.bundle"
    git clone --quiet "$work/checkout.bundle" "$home/vapor-desktop" 2>/dev/null
    printf 'Commit %s of this checkout.\n' "$(git -C "$home/vapor-desktop" rev-parse --short HEAD)"
    chroot "$root" chown -R newcomer: /home/newcomer
}

packages() { chroot "$root" dpkg-query -W -f '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | sort; }

# Runs in namespaces of its own: mounts what every machine has, then becomes the newcomer.
inside() {
    mount_machine
    # A login of the newcomer, who inherits nothing of this machine.
    env -i TERM=dumb PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" runuser -l newcomer -c "cd vapor-desktop && $1"
}

in_machine() {
    export -f inside mount_machine local_indexes pip_settings
    root=$root here=$here unshare --mount --pid --fork --kill-child -- bash -euo pipefail -c 'inside "$1"' - "$1" </dev/null
}

((EUID == 0)) || {
    echo "fresh_machine.sh: needs root" >&2
    exit 1
}
begun=$SECONDS
# sudo is what a person's own machine has and a minimal root lacks; nothing else is added.
bare_root sudo
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
