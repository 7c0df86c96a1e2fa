#!/usr/bin/env bash
# packages.sh RELEASE: ./vapor package, then on a bare Debian of that release (this machine's): install, start, upgrade,
# remove and purge, as an administrator would by apt. Root; takes minutes. Called by `./vapor soak`.
#
# shellcheck disable=SC2016 # text for the root's shell
set -euo pipefail

release=${1:?"RELEASE, e.g. bookworm: the one that this machine runs"}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
work=$(mktemp -d "${TMPDIR:-/var/tmp}/vapor-packages-$release.XXXXXX")
root=$work/root
trap 'rm -rf --one-file-system -- "$work"' EXIT
# shellcheck source=tests/soak/machine.sh
source "$here/tests/soak/machine.sh"

step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
on_it() { # WHAT: the text on standard input, by a shell in the root; its output only when it fails
    local log
    log=$work/$((SECONDS)).log
    { echo 'export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; set -x'; cat; } | in_root >"$log" 2>&1 || {
        tail -n 40 "$log" >&2
        echo "packages.sh: failed: $1" >&2
        exit 1
    }
    step "$1"
}

((EUID == 0)) || {
    echo "packages.sh: needs root" >&2
    exit 1
}
# shellcheck source=/dev/null
[[ $(. /etc/os-release && echo "$VERSION_CODENAME") == "$release" ]] || {
    echo "packages.sh: packages are for the release they are built on; this machine runs another than $release" >&2
    exit 1
}

"$here/packaging/build.sh" "$work/first" >"$work/build.log" 2>&1 || { tail -n 30 "$work/build.log" >&2; exit 1; }
step "built: $(cd "$work/first" && echo *.deb *.rpm)"
VAPOR_VERSION=99.0 VAPOR_ONLY="vapor-site vapor-engine" "$here/packaging/build.sh" "$work/second" >>"$work/build.log" 2>&1
step "built once more, as a later version"
if dpkg-deb --contents "$work"/first/vapor-site_*.deb | grep -iE 'pyside|libQt'; then
    echo "packages.sh: there is Qt in vapor-site" >&2
    exit 1
fi
if dpkg-deb --contents "$work"/first/vapor-engine_*.deb | grep -iE 'pyside|libQt'; then
    echo "packages.sh: there is Qt in vapor-engine" >&2
    exit 1
fi

bare_root systemd,ca-certificates,curl
reach_sources
printf 'APT::Get::Assume-Yes "true";\nAPT::Install-Recommends "false";\n' >"$root/etc/apt/apt.conf.d/90soak"
mkdir "$root/pkgs"
cp "$work"/first/*.deb "$work"/second/*.deb "$root/pkgs/"
step "a bare $release"

on_it "vapor-site is installed with what it needs, and answers" <<'IN'
update-ca-certificates; apt-get -q update
find / -xdev -path /proc -prune -o -path /pkgs -prune -o -print | sort >/before-site
apt-get -q install /pkgs/vapor-site_0*.deb
vapor-site --version
test "$(stat -c %U:%a /var/lib/libvirt/images/vapor)" = vapor:2770
systemctl is-enabled vapor-site.service vapor-helper.socket vapor-bubble.socket
! find /opt/vapor-site -iname '*pyside*' | grep .
install -d -o vapor -g vapor -m 750 /var/lib/vapor /run/vapor
runuser -u vapor -- vapor-site serve >/serve.log 2>&1 &
serving=$!
for _ in $(seq 300); do
    if curl -sk https://127.0.0.1:7770/api/v1/hello >/hello; then break; fi
    sleep 0.1
done
cat /hello /serve.log
grep '"vapor-site"' /hello
runuser -u vapor -- vapor-site token new | grep https://
runuser -u vapor -- vapor-site doctor || test $? = 1
kill "$serving"
_VAPOR_SITE_COMPLETE=bash_source vapor-site | cmp - /usr/share/bash-completion/completions/vapor-site
IN

on_it "it is upgraded: what a person changed stays" <<'IN'
echo '# ours' >>/etc/vapor/site.toml
echo kept >/var/lib/vapor/state
apt-get -q install /pkgs/vapor-site_99*.deb
dpkg-query -W -f '${Version}\n' vapor-site | grep -x 99.0
grep '# ours' /etc/vapor/site.toml
grep kept /var/lib/vapor/state
vapor-site --version
IN

on_it "it is removed, then purged: the hook goes, the replicas stay" <<'IN'
mkdir -p /etc/libvirt/hooks/qemu.d && touch /etc/libvirt/hooks/qemu.d/vapor
echo replica >/var/lib/libvirt/images/vapor/replica
apt-get -q remove vapor-site
test ! -e /etc/libvirt/hooks/qemu.d/vapor
test ! -e /opt/vapor-site
test ! -e /usr/bin/vapor-site
test -e /var/lib/vapor/state
apt-get -q purge vapor-site
test ! -e /var/lib/vapor
test ! -e /etc/vapor
grep replica /var/lib/libvirt/images/vapor/replica
dpkg -L vapor-site && exit 1
find / -xdev -name '*vapor*' -not -path '/pkgs/*' -not -path '/proc/*' | sort >/left
cat /left
test "$(grep -v '^/var/lib/libvirt/images/' /left | grep -cv '^/var/lib/systemd/\|^/etc/\(passwd\|group\)')" = 0
IN

on_it "vapor-engine is installed, runs on a fresh database, is upgraded and purged" <<'IN'
apt-get -q install /pkgs/vapor-engine_0*.deb
vaporctl --version
getent passwd vapor-engine
HOME=/root timeout --preserve-status -s TERM 8 vapor-engine >/engine.log 2>&1
cat /engine.log
grep 'engine is active' /engine.log
HOME=/root vaporctl status --json
apt-get -q install /pkgs/vapor-engine_99*.deb
apt-get -q purge vapor-engine
test ! -e /opt/vapor-engine
test -e /root/.local/share/vapor-desktop/vapor.db
IN

on_it "vapor-desktop is installed and paints its window" <<'IN'
apt-get -q install /pkgs/vapor-desktop_0*.deb xvfb xauth dbus imagemagick desktop-file-utils
desktop-file-validate /usr/share/applications/vapor-desktop.desktop
vapor-desktop --version
vaporctl --version
cat >/look.sh <<'SH'
vapor-desktop >/console.log 2>&1 &
console=$!
for _ in $(seq 100); do
    import -window root /window.png && colours=$(identify -format %k /window.png) && [ "$colours" -gt 200 ] && break
    sleep 0.2
done
kill -TERM $console
wait $console || true
echo "colours: $colours"
[ "$colours" -gt 200 ]
SH
mkdir -p /run/user/0
HOME=/root XDG_RUNTIME_DIR=/run/user/0 dbus-run-session -- xvfb-run -a -s "-screen 0 1300x820x24" bash -e /look.sh
cat /console.log
apt-get -q purge vapor-desktop
test ! -e /opt/vapor-desktop
IN
if [[ -n ${VAPOR_ALBUM:-} ]]; then cp "$root/window.png" "$VAPOR_ALBUM/packaged-console.png"; fi
step "done"
