#!/usr/bin/env bash
# booted_host.sh RELEASE: packaging/README.md's own commands on a bare Debian of that release that is then booted by
# its systemd: the units start, the service answers over HTTPS, comes back after a kill, and stops. Root; takes minutes.
#
# The host is a directory with namespaces (mounts, processes, network, cgroups) of its own, all gone at the end.
# shellcheck disable=SC2016 # text for the host's shell
set -euo pipefail

release=${1:?"RELEASE, e.g. bookworm"}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
work=$(mktemp -d "${TMPDIR:-/var/tmp}/vapor-booted-$release.XXXXXX")
root=$work/root
group=
holder=
# shellcheck source=tests/soak/machine.sh
source "$here/tests/soak/machine.sh"

end() {
    if [[ -n $holder ]]; then # its PID namespace dies with it
        kill -KILL "$holder" 2>/dev/null || true
        wait "$holder" 2>/dev/null || true
    fi
    for _ in {1..100}; do
        if [[ -z $group ]] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; then break; fi
        sleep 0.1
    done
    rm -rf --one-file-system -- "$work"
}
trap end EXIT

((EUID == 0)) || {
    echo "booted_host.sh: needs root" >&2
    exit 1
}

step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() {
    printf 'booted_host.sh: %s\n' "$*" >&2
    if [[ -n $holder ]]; then on_host journalctl --boot --no-pager --priority notice | tail -n 60 >&2 || true; fi
    exit 1
}

documented() { # N: the N-th block of commands under "A host" of packaging/README.md
    awk -v wanted="$1" '/^## /{host = /A host/} host && /^ *```/{inside = !inside; n += inside; next}
        host && inside && n == wanted' "$here/packaging/README.md"
}

# --- before its first boot -------------------------------------------------------------------------------------
install_it() {
    bare_root systemd,systemd-sysv,dbus,ca-certificates,iproute2
    reach_sources
    printf 'APT::Get::Assume-Yes "true";\nAPT::Install-Recommends "false";\n' >"$root/etc/apt/apt.conf.d/90soak"
    committed "$work/checkout.bundle"
    mkdir -p "$root/opt/vapor"
    git clone --quiet "$work/checkout.bundle" "$root/opt/vapor/src" 2>/dev/null
    step "a bare $release; commit $(git -C "$root/opt/vapor/src" rev-parse --short HEAD)"
    {
        echo 'set -a; . /etc/environment 2>/dev/null || true; export DEBIAN_FRONTEND=noninteractive'
        echo 'update-ca-certificates >/dev/null 2>&1; apt-get -q update >/dev/null'
        documented 1
        documented 2
    } | in_root >"$work/install.log" 2>&1 || {
        tail -n 30 "$work/install.log" >&2
        fail "packaging/README.md's steps 1 and 2 failed"
    }
    rm "$root/usr/sbin/policy-rc.d"
    echo booted >"$root/etc/hostname"
    # There is no console to log in at, and the network is the loopback.
    ln -s /dev/null "$root/etc/systemd/system/console-getty.service"
    step "packages and the program are installed, as documented"
}

# --- booted --------------------------------------------------------------------------------------------------
boot() {
    local unified
    unified=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
    [[ -n $unified ]] || fail "no cgroup2 is mounted here, which systemd needs"
    group=$unified/vapor-booted-$$
    mkdir "$group"
    export -f mount_machine local_indexes pip_settings
    root=$root here=$here group=$group bash -euc '
        echo $$ >"$group/cgroup.procs"
        exec unshare --mount --uts --ipc --net --pid --cgroup --fork --kill-child -- bash -euo pipefail -c "$1"' - '
        mount --bind "$root" "$root"
        mount_machine
        # What is not this host alone is not its to change.
        mount --bind "$root/proc/sys" "$root/proc/sys"
        mount -o remount,bind,ro "$root/proc/sys"
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
        mount -t tmpfs tmpfs "$root/tmp"
        ip link set lo up
        cd "$root"
        exec env -i container=vapor PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /lib/systemd/systemd --system' \
        </dev/null >"$work/boot.log" 2>&1 &
    holder=$!
    for _ in {1..600}; do
        init=$(pgrep -P "$holder" 2>/dev/null || true)
        if [[ -n $init && $(cat "/proc/$init/comm" 2>/dev/null) == systemd ]] &&
            on_host systemctl is-system-running 2>/dev/null | grep -qE '^(running|degraded)$'; then
            step "booted: $(on_host systemctl --version | head -n 1), $(on_host systemctl is-system-running)"
            return
        fi
        kill -0 "$holder" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/boot.log" >&2
    fail "systemd did not come up"
}

on_host() {
    nsenter -t "$init" --mount --uts --ipc --net --pid --cgroup --root --wd -- \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$@"
}

state() { on_host systemctl show "$1" --property "$2" --value; }
healthy() { # from outside, with a fresh token, by the console's own client
    on_host runuser -u vapor -- vapor-site token new --json |
        nsenter -t "$init" --net -- "$here/.venv/bin/python" "$here/tests/soak/ask_health.py"
}

install_it
boot
documented 3 | on_host bash -euo pipefail -s >"$work/units.log" 2>&1 || {
    cat "$work/units.log" >&2
    fail "packaging/README.md's step 3 failed"
}
[[ $(state vapor-site.service ActiveState) == active ]] || fail "vapor-site.service is not active"
[[ $(state vapor-helper.socket ActiveState) == active ]] || fail "vapor-helper.socket is not active"
[[ $(state vapor-bubble.socket ActiveState) == active ]] || fail "vapor-bubble.socket is not active"
[[ $(state vapor-site.service User) == vapor ]] || fail "vapor-site does not run as vapor"
step "vapor-site.service is active (it told systemd that it listens), vapor-helper.socket too"
first=$(healthy) || fail "it is not healthy"
step "healthy over HTTPS, certificate $first"

before=$(state vapor-site.service MainPID)
on_host kill -KILL "$before"
for _ in {1..200}; do
    now=$(state vapor-site.service MainPID)
    if [[ $now != 0 && $now != "$before" && $(state vapor-site.service ActiveState) == active ]]; then break; fi
    sleep 0.1
done
[[ $(healthy) == "$first" ]] || fail "after a kill it is not the same site, healthy"
step "killed, systemd brought it back; the same certificate"

on_host systemctl restart vapor-site.service vapor-helper.socket
[[ $(healthy) == "$first" ]] || fail "after a restart it is not the same site, healthy"
on_host systemctl stop vapor-site.service vapor-helper.socket vapor-helper.service
for unit in vapor-site.service vapor-helper.service; do
    [[ $(state "$unit" Result) == success ]] || fail "$unit did not end well: $(state "$unit" Result)"
done
step "restarted and stopped, both with success"
if on_host journalctl --boot --no-pager --unit vapor-site.service --unit vapor-helper.service | grep -F Traceback; then
    fail "the journal has a trace"
fi
echo "vapor-site under systemd on $release: 1 passed, 0 failed"
