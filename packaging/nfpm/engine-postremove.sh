#!/bin/sh
# Gone. Its database is PostgreSQL's; the sealed credentials go by a purge.
# dpkg: "configure OLD" / "remove" / "upgrade NEW" / "purge"; rpm: how many versions there will be.
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ "$1" = purge ]; then rm -rf /etc/vapor-engine; fi
