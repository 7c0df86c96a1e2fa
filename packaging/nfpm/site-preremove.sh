#!/bin/sh
# Before it goes: libvirt must not ask a hook whose program is gone, or no VM of the host starts.
# dpkg: "configure OLD" / "remove" / "upgrade NEW" / "purge"; rpm: how many versions there will be.
set -e
find /opt/vapor-site -name __pycache__ -type d -prune -exec rm -rf {} +
case $1 in upgrade | 1) exit 0 ;; esac
rm -f /etc/libvirt/hooks/qemu.d/vapor
if [ -d /run/systemd/system ]; then systemctl stop vapor-helper.socket vapor-bubble.socket vapor-site.service vapor-helper.service vapor-bubble.service; fi
systemctl disable vapor-helper.socket vapor-bubble.socket vapor-site.service
