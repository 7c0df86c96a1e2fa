#!/bin/sh
# Compiled once, by the Python that will run it.
# dpkg: "configure OLD" / "remove" / "upgrade NEW" / "purge"; rpm: how many versions there will be.
set -e
/opt/vapor-desktop/bin/python3 -m compileall -q /opt/vapor-desktop/lib || true # some packages carry files for other Pythons
