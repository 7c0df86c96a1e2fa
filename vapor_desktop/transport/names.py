"""What the console's secrets are called. Names that systemd accepts for credentials too (no colon)."""

from __future__ import annotations

SSH_KEY = "console-ssh-key"  # the private key, OpenSSH text


def site_token(site_id: str) -> str:
    """The console's token for that site."""
    return f"site-token.{site_id}"
