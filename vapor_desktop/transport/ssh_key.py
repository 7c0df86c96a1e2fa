"""The console's own SSH key: made once, kept in the keyring."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from vapor_desktop.engine.ports import Secrets
from vapor_desktop.model.errors import NotAllowed
from vapor_desktop.transport.names import SSH_KEY


def console_private_key(secrets: Secrets) -> str:
    """The private key as OpenSSH text; made and put into ``secrets`` when there is none yet."""
    text = secrets.get(SSH_KEY)
    if text is None:
        text = (
            ed25519.Ed25519PrivateKey.generate()
            .private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
            .decode()
        )
        secrets.put(SSH_KEY, text)
    return text


def console_public_key(secrets: Secrets) -> str:
    """``ssh-ed25519 AAAA…``. Raises NotAllowed when the keyring's entry is no key."""
    try:
        key = serialization.load_ssh_private_key(console_private_key(secrets).encode(), password=None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise NotAllowed(
            "The console's SSH key in the keyring is damaged",
            fix=f"Delete the keyring's entry “{SSH_KEY}”, pair again",
        ) from error
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()
