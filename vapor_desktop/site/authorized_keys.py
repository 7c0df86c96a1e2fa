"""sshd's ``authorized_keys`` of the account, and our ``known_hosts``: only our lines, everybody else's kept."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.site.statefile import locked, make_dir, write_atomic

KEY_TYPES = frozenset(
    {
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "ssh-rsa",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)
_COMMAND = re.compile(r"[A-Za-z0-9_./=:+@%, -]+")


def clean_key(text: str) -> str:
    """ "TYPE BASE64" of an OpenSSH public key; comment and options are refused or dropped.

    Raises InvalidRequest: unknown type, damaged base64, or a type inside that is not the type outside.
    """
    parts = text.split()
    if len(parts) < 2 or parts[0] not in KEY_TYPES or "\n" in text.strip() or "\r" in text.strip():
        raise InvalidRequest("This is not an OpenSSH public key", fix="Send one line: TYPE BASE64")
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("The SSH public key is damaged", why="its base64 does not decode") from error
    size = int.from_bytes(blob[:4], "big")
    if blob[4 : 4 + size] != parts[0].encode() or len(blob) <= 4 + size:
        raise InvalidRequest("The SSH public key is damaged", why="its inside is of another type")
    return f"{parts[0]} {parts[1]}"


def set_line(path: Path, tag: str, command: str, key: str) -> None:
    """Allow ``key`` to run ``command`` and nothing else. ``tag`` ("console:UUID") names our line; replaces it."""
    if not _COMMAND.fullmatch(command):
        raise InvalidRequest(f"The command {command!r} does not fit into authorized_keys")
    _rewrite(path, tag, f'restrict,command="{command}" {clean_key(key)} {tag}')


def remove_line(path: Path, tag: str) -> None:
    """Take our line away. Idempotent."""
    _rewrite(path, tag, None)


def _rewrite(path: Path, tag: str, line: str | None) -> None:
    make_dir(path.parent, 0o700)
    with locked(path):
        try:
            old = path.read_text()
        except FileNotFoundError:
            old = ""
        kept = [entry for entry in old.splitlines() if not _is_ours(entry, tag)]
        if line is not None:
            kept.append(line)
        new = "".join(f"{entry}\n" for entry in kept)
        if new != old:
            write_atomic(path, new.encode(), 0o600)


def _is_ours(entry: str, tag: str) -> bool:
    """Ours only: forced command *and* the tag as the comment. A stranger's key with a like comment stays."""
    return entry.startswith('restrict,command="') and entry.endswith(f" {tag}")


def write_known_hosts(path: Path, pins: dict[str, tuple[str, ...]]) -> None:
    """The whole file anew: host key alias -> host keys."""
    lines = [f"{alias} {clean_key(key)}\n" for alias, keys in sorted(pins.items()) for key in keys]
    write_atomic(path, "".join(lines).encode(), 0o644)
