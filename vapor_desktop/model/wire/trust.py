"""Who talks to whom: a site's identity, tokens, keys and enrolments."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from vapor_desktop.model.policy import Value

API_VERSION = 1
API_PORT = 7770
MOVER_PROTOCOL = 1


class Scope(StrEnum):
    """What a console's token may do."""

    VIEW = "view"
    OPERATE = "operate"
    ADMIN = "admin"


class Identity(Value):
    """GET /identity. Needs no token beyond the one-time token; ``now`` is the site's clock (UTC)."""

    site_id: str
    name: str
    version: str
    api_version: int
    mover_protocol: int
    libvirt_version: str | None  # None: libvirt does not answer
    qemu_version: str | None
    now: datetime
    boot_id: str
    replica_root: str
    scratch_dir: str = "/var/lib/libvirt/images/.vapor-scratch"
    scratch_reserve_bytes: int = 1 << 30
    guard_proven: bool = False  # the start guard was seen to refuse, by the hook that is installed now


class TokenExchange(Value):
    """POST /tokens/exchange: one-time token (bearer) -> console token."""

    console_name: str
    console_id: str


class ConsoleToken(Value):
    """Answer of the exchange; the token itself goes to the OS keyring only."""

    token: str
    token_id: str
    scope: Scope
    expires_at: datetime | None


class SshInfo(Value):
    """GET /ssh: how to reach and recognise this site's sshd, and the key with which it reaches peers."""

    port: int
    user: str
    host_keys: tuple[str, ...]  # "ssh-ed25519 AAAA…"
    user_key: str


class EnrolConsole(Value):
    """POST /enrolments/consoles: the console's SSH public key."""

    console_id: str
    console_name: str
    public_key: str


class EnrolPeer(Value):
    """POST /enrolments/peers: the other site of a pair, as seen from this one."""

    site_id: str
    name: str
    public_key: str
    host_keys: tuple[str, ...]
    address: str
    port: int
    user: str


class PeerCheck(Value):
    """POST /enrolments/peers/{site}/check: can this site reach that peer over SSH?"""

    reachable: bool
    latency_s: float | None = None
    error: dict[str, Any] | None = None
