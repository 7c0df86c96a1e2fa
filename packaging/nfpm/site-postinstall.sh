#!/bin/sh
# The account, its folders and the units; what runs goes on with the new version.
# dpkg: "configure OLD" / "remove" / "upgrade NEW" / "purge"; rpm: how many versions there will be.
set -e
/opt/vapor-site/bin/python3 -m compileall -q /opt/vapor-site/lib || true # some packages carry files for other Pythons
systemd-sysusers vapor-site.conf
systemd-tmpfiles --create vapor-site.conf
first=
if [ "$1" = 1 ]; then first=1; fi
if [ "$1" = configure ] && [ -z "$2" ]; then first=1; fi
if [ -n "$first" ]; then systemctl enable vapor-helper.socket vapor-bubble.socket vapor-site.service; fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if [ -n "$first" ]; then
        systemctl start vapor-helper.socket vapor-bubble.socket vapor-site.service
    else
        systemctl try-restart vapor-helper.service vapor-bubble.service vapor-site.service
    fi
fi
if [ -n "$first" ]; then
    echo "vapor-site: next: vapor-site guard install (as root), then: runuser -u vapor -- vapor-site doctor"
fi
