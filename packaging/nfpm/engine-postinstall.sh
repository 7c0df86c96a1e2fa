#!/bin/sh
# The account; an engine that runs goes on with the new version. It needs its database first: not enabled.
# dpkg: "configure OLD" / "remove" / "upgrade NEW" / "purge"; rpm: how many versions there will be.
set -e
/opt/vapor-engine/bin/python3 -m compileall -q /opt/vapor-engine/lib || true # some packages carry files for other Pythons
systemd-sysusers vapor-engine.conf
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl try-restart vapor-engine.service
fi
