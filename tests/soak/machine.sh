# Sourced: bare Debian roots for the soak scripts. Needs $here (the checkout), $release and $root.
# How this machine reaches apt's and pip's sources (mirror, proxy, extra authorities) is copied at run time.
# shellcheck shell=bash disable=SC2016 # text for dpkg, apt and python
: "${here:?}" "${release:?}" "${root:?}"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

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

bare_root() { # PACKAGES (comma-separated): the smallest Debian and these
    local options=() line
    while IFS= read -r line; do options+=(--aptopt="$line"); done \
        < <(apt-config dump | grep -iE '^Acquire::(https?::|Check)' || true)
    sources | mmdebstrap --quiet --mode=root --variant=minbase --include="$1" "${options[@]}" "$release" "$root" -
}

reach_sources() { # what a machine here needs to reach them
    local name directory
    # Services cannot start while there is no init. This is how Debian is told.
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

committed() { # FILE: what is committed, as a clone of it would have it
    local owner
    owner=$(stat -c %U "$here")
    runuser -u "$owner" -- git -C "$here" bundle create --quiet - HEAD >"$1"
    if [[ -n $(runuser -u "$owner" -- git -C "$here" status --porcelain) ]]; then
        echo 'What is not committed here is not in it.'
    fi
}

mount_machine() { # in a mount namespace of its own: what every machine has
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
}

in_root() { # a shell's text on standard input
    export -f mount_machine local_indexes pip_settings
    root=$root here=$here unshare --mount --pid --fork --kill-child -- bash -euo pipefail -c '
        mount_machine
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" bash -euo pipefail -s'
}
