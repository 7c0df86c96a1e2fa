"""Who may reach this host over SSH: the consoles, and the peers of its pairs."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from vapor_desktop.model.errors import InvalidRequest, NotFound
from vapor_desktop.model.wire import EnrolConsole, EnrolPeer
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.authorized_keys import clean_key, remove_line, set_line, write_known_hosts
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.site.ssh_options import host_key_alias
from vapor_desktop.site.statefile import locked, make_dir, read_json, write_json

_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


class Enrolments:
    """``enrolments.json`` and the two SSH files made from it. Safe across processes."""

    def __init__(self, settings: SiteSettings) -> None:
        self._settings = settings
        self._path = settings.enrolments_file
        self._audit = AuditLog(settings.audit_log)

    def add_console(self, request: EnrolConsole, token_id: str) -> None:
        """Let the console's key run ``vapor-site console``; replaces an older key of the same console."""
        console_id = uuid_text(request.console_id, "console_id")
        key = clean_key(request.public_key)
        self._audit(
            "enrol-console", console_id=console_id, name=request.console_name, public_key=key, token_id=token_id
        )
        record = {"console_name": request.console_name, "public_key": key, "token_id": token_id}
        self._change("consoles", console_id, record)
        command = f"{self._settings.site_command} console"
        set_line(self._settings.authorized_keys, f"console:{console_id}", command, key)

    def remove_console(self, console_id: str) -> None:
        """Take the console's key away. Idempotent."""
        console_id = uuid_text(console_id, "console_id")
        remove_line(self._settings.authorized_keys, f"console:{console_id}")
        if self._change("consoles", console_id, None):
            self._audit("remove-console", console_id=console_id)

    def add_peer(self, request: EnrolPeer, own_site: str) -> None:
        """Pin the peer's host keys and let its key run ``vapor-site peer UUID``; replaces older ones.

        Raises InvalidRequest for a bad key, address, user or port, and for this very site.
        """
        peer = _checked(request, own_site)
        self._audit(
            "enrol-peer",
            site_id=peer.site_id,
            name=peer.name,
            address=f"{peer.address}:{peer.port}",
            public_key=peer.public_key,
            host_keys=list(peer.host_keys),
        )
        self._change("peers", peer.site_id, peer.model_dump(mode="json"))
        command = f"{self._settings.site_command} peer {peer.site_id}"
        set_line(self._settings.authorized_keys, f"peer:{peer.site_id}", command, peer.public_key)

    def remove_peer(self, site_id: str) -> None:
        """End the pair on this side. Idempotent."""
        site_id = uuid_text(site_id, "site")
        remove_line(self._settings.authorized_keys, f"peer:{site_id}")
        if self._change("peers", site_id, None):
            self._audit("remove-peer", site_id=site_id)

    def peer(self, site_id: str) -> EnrolPeer:
        """The peer as it was enrolled. Raises NotFound."""
        record = self._load()["peers"].get(uuid_text(site_id, "site"))
        if record is None:
            raise NotFound("This site is not paired with that one", fix="Pair the two sites first", site_id=site_id)
        return EnrolPeer.model_validate(record)

    def peers(self) -> tuple[EnrolPeer, ...]:
        """All peers, by name."""
        found = (EnrolPeer.model_validate(record) for record in self._load()["peers"].values())
        return tuple(sorted(found, key=lambda peer: (peer.name, peer.site_id)))

    def _load(self) -> dict[str, dict[str, Any]]:
        value = read_json(self._path) or {}
        return {"consoles": value.get("consoles", {}), "peers": value.get("peers", {})}

    def _change(self, kind: str, key: str, record: dict[str, Any] | None) -> bool:
        """Store or (None) drop one record and write ``known_hosts`` again; False when nothing was there to drop."""
        make_dir(self._path.parent)
        with locked(self._path):
            state = self._load()
            if record is None:
                if state[kind].pop(key, None) is None:
                    return False
            else:
                state[kind][key] = record
            write_json(self._path, state)
            make_dir(self._settings.known_hosts.parent, 0o700)
            pins = {host_key_alias(site): tuple(peer["host_keys"]) for site, peer in state["peers"].items()}
            write_known_hosts(self._settings.known_hosts, pins)
            return True


def find_peer(settings: SiteSettings, site_id: str) -> EnrolPeer:
    """The enrolled peer of that UUID, for the mover. Raises NotFound."""
    return Enrolments(settings).peer(site_id)


def uuid_text(text: str, what: str) -> str:
    """The canonical text of a UUID. Raises InvalidRequest naming ``what``."""
    try:
        return str(UUID(text))
    except ValueError as error:
        raise InvalidRequest(f"{what} is not a UUID", why=repr(text)) from error


def _checked(request: EnrolPeer, own_site: str) -> EnrolPeer:
    site_id = uuid_text(request.site_id, "site_id")
    if site_id == own_site:
        raise InvalidRequest("A site cannot be its own peer", fix="Pair it with another site")
    if not _ADDRESS.fullmatch(request.address):
        raise InvalidRequest(f"{request.address!r} is not a host name or an address")
    if not _USER.fullmatch(request.user):
        raise InvalidRequest(f"{request.user!r} is not an account name")
    if not 1 <= request.port <= 65535:
        raise InvalidRequest(f"{request.port} is not a port")
    if not request.host_keys:
        raise InvalidRequest("A peer without host keys cannot be recognised")
    return request.model_copy(
        update={
            "site_id": site_id,
            "public_key": clean_key(request.public_key),
            "host_keys": tuple(clean_key(key) for key in request.host_keys),
        }
    )
