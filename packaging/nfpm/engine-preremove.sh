#!/bin/sh
# Before it goes.
# dpkg: "configure OLD" / "remove" / "upgrade NEW" / "purge"; rpm: how many versions there will be.
set -e
find /opt/vapor-engine -name __pycache__ -type d -prune -exec rm -rf {} +
case $1 in upgrade | 1) exit 0 ;; esac
if [ -d /run/systemd/system ]; then systemctl stop vapor-engine.service; fi
systemctl disable vapor-engine.service
