#!/bin/sh
# Gone. The replicas are left to whoever owns the VMs, also by a purge.
# dpkg: "configure OLD" / "remove" / "upgrade NEW" / "purge"; rpm: how many versions there will be.
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ "$1" = purge ]; then rm -rf /var/lib/vapor /etc/vapor; fi
