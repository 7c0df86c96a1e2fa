#!/bin/sh
# Before it goes, or is replaced: what was compiled is in no package's list.
# dpkg: "configure OLD" / "remove" / "upgrade NEW" / "purge"; rpm: how many versions there will be.
set -e
find /opt/vapor-desktop -name __pycache__ -type d -prune -exec rm -rf {} +
