"""Pair with the site on loopback by `vapor-site token new --json` on standard input; ask its health.

Prints the certificate's SHA-256. Exit code 1, and the doctor's words, when something is wrong that a host of a
namespace can have right.
"""

from __future__ import annotations

import json
import sys
import uuid

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vapor_desktop.transport.api_client import HttpSiteApi
from vapor_desktop.transport.pairing import pair_site, probe

URL = "https://127.0.0.1:7770/api/v1"
# The clock is the outer machine's, which nobody may have synchronised; the hook is a step of its own.
NOT_OURS = {"clock", "start guard"}


def main() -> int:
    """The exit code."""
    told = json.load(sys.stdin)
    key = Ed25519PrivateKey.generate().public_key()
    public = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    seen = probe(URL)
    _site, token = pair_site(seen, told["token"], str(uuid.uuid4()), "soak", public)
    api = HttpSiteApi(seen.api_url, seen.cert_pem, lambda: token)
    try:
        health = api.health()
    finally:
        api.close()
    bad = [check for check in health.checks if not check.ok]
    for check in bad:
        print(f"BAD  {check.name:20} {check.found}\n     -> {check.fix}", file=sys.stderr)
    wrong = {check.name for check in bad} - NOT_OURS
    print(seen.cert_sha256)
    return 0 if health.libvirt and health.helper and health.checks and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
