"""``engine.ports.SiteGateway``: opens connections to sites once and keeps them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vapor_desktop.engine.ports import Hypervisor, Mover, Repository, Secrets, SiteApi
from vapor_desktop.model.errors import SiteUnreachable, VaporError
from vapor_desktop.model.sites import Site
from vapor_desktop.transport.api_client import HttpSiteApi
from vapor_desktop.transport.mover_client import SshMover
from vapor_desktop.transport.pairing import own_token
from vapor_desktop.transport.relay import RelayBoard
from vapor_desktop.transport.ssh import LineChannel, SshSession, check_host_key
from vapor_desktop.transport.ssh_files import SshFiles
from vapor_desktop.transport.ssh_key import console_private_key

_log = logging.getLogger(__name__)


class _Closable(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _PairMover:
    """A mover, and the target as it was when the mover was made."""

    mover: SshMover
    target: Site

    def serves(self, target: Site, route: str) -> bool:
        """Only a relay depends on where we see the target: the mover itself knows its peer's address."""
        return self.mover.route == route and (route == "direct" or _same_place(self.target, target))


@dataclass
class _Connections:
    """Everything open to one site. The lock is held while something is being opened, so it is opened once."""

    site: Site
    lock: threading.Lock = field(default_factory=threading.Lock)
    api: HttpSiteApi | None = None
    hypervisor: Hypervisor | None = None
    session: SshSession | None = None
    movers: dict[str, _PairMover] = field(default_factory=dict)
    closed: bool = False

    def close(self) -> None:
        self.closed = True
        opened: list[_Closable | None] = [
            *(pair.mover for pair in self.movers.values()),
            self.hypervisor,
            self.session,
            self.api,
        ]
        with ExitStack() as each:  # one that fails in a way nobody foresaw must not keep the others open
            for connection in reversed(opened):
                if connection is not None:
                    each.callback(_close, connection)


class Gateway:
    """Thread-safe. ``hypervisor_factory`` makes a hypervisor of a libvirt URI (it may connect later).

    ``repository`` knows a pair's route: direct, or relayed by this program's own SSH processes.

    A site that was edited (address, pins) gets new connections. ``runtime_dir``: where SSH files go;
    None: below ``$XDG_RUNTIME_DIR``.
    """

    def __init__(
        self,
        repository: Repository,
        secrets: Secrets,
        hypervisor_factory: Callable[[str], Hypervisor],
        runtime_dir: Path | None = None,
    ) -> None:
        self._repository = repository
        self._secrets = secrets
        self._factory = hypervisor_factory
        self._files = SshFiles(secrets, runtime_dir)
        self._lock = threading.Lock()
        self._open: dict[str, _Connections] = {}
        self._closed = False

    def api(self, site: Site) -> SiteApi:
        """The site's API; connects on first use."""
        with self._held(site) as connections:
            if connections.api is None:
                connections.api = HttpSiteApi(
                    site.api_url, site.cert_pem, lambda: own_token(self._secrets, connections.site)
                )
            return connections.api

    def hypervisor(self, site: Site) -> Hypervisor:
        """The site's libvirt. The first time the host key is looked at beforehand: libvirt can only say
        that it failed, we can say why. Raises HostKeyChanged, SiteUnreachable, KeyringLocked.
        """
        with self._held(site) as connections:
            if connections.hypervisor is None:
                check_host_key(site)
                connections.hypervisor = self._factory(self._files.libvirt_uri(site))
            return connections.hypervisor

    def mover(self, source: Site, target: Site) -> Mover:
        """The mover at ``source`` whose channel is for transfers to ``target``; connects on first use.

        A pair that was paired again may have another route: it gets another mover.
        """
        route = self._route(source, target)
        with self._held(source) as connections:
            known = connections.movers.get(target.site_id)
            if known is not None and known.serves(target, route):
                return known.mover
            made = self._made_mover(connections, target, route)
            connections.movers[target.site_id] = _PairMover(made, target)
        if known is not None:
            known.mover.retire()
        return made

    def drop(self, site_id: str) -> None:
        """Forget the site's connections; the next call opens new ones, from the host key on."""
        with self._lock:
            connections = self._open.pop(site_id, None)
        if connections is not None:
            with connections.lock:
                connections.close()
            self._files.end_master(connections.site)
        with self._lock:
            others = list(self._open.values())
        for other in others:
            pair = other.movers.get(site_id)
            if pair is not None:
                pair.mover.drop_relays()

    def close(self) -> None:
        """End everything; the private key's file is deleted. Whoever asks later gets SiteUnreachable."""
        with self._lock:
            self._closed = True  # a thread that outlives the program's end would open what nobody closes any more
            opened = list(self._open)
        for site_id in opened:
            self.drop(site_id)
        self._files.close()

    @contextmanager
    def _held(self, site: Site) -> Iterator[_Connections]:
        """The site's connections, locked, and not dropped by another thread in between."""
        while True:
            connections = self._of(site)
            with connections.lock:
                if not connections.closed:
                    yield connections
                    return

    def _of(self, site: Site) -> _Connections:
        with self._lock:
            if self._closed:
                raise SiteUnreachable(f"No new connection to {site.name}", why="this program is ending")
            connections = self._open.get(site.site_id)
            if connections is not None and not _same_place(connections.site, site):
                stale = self._open.pop(site.site_id)
            else:
                stale = None
            if connections is None or stale is not None:
                connections = self._open[site.site_id] = _Connections(site)
        if stale is not None:
            with stale.lock:
                stale.close()
            self._files.end_master(stale.site)
        return connections

    def _route(self, source: Site, target: Site) -> str:
        ends = {source.site_id, target.site_id}
        routes = (route for a, b, route in self._repository.pairs() if {a, b} == ends)
        return next(routes, "direct")

    def _made_mover(self, connections: _Connections, target: Site, route: str) -> SshMover:
        site = connections.site
        if route == "direct":
            return SshMover(lambda: self._mover_channel(connections, "mover"), site.site_id)
        return SshMover(
            lambda: self._mover_channel(connections, "mover --relay"),
            site.site_id,
            lambda: RelayBoard(self._files, site, target),
        )

    def _mover_channel(self, connections: _Connections, command: str) -> LineChannel:
        with connections.lock:
            if connections.closed:
                raise SiteUnreachable(
                    f"The connections to {connections.site.name} were given up meanwhile",
                    why="the site was lost or edited",
                    fix="The next try opens new ones",
                )
            if connections.session is None or not connections.session.alive:
                connections.session = SshSession(connections.site, console_private_key(self._secrets))
            return connections.session.run(command)


def _same_place(a: Site, b: Site) -> bool:
    keys = ("api_url", "cert_pem", "ssh_host", "ssh_port", "ssh_user", "ssh_host_keys", "token_id")
    return all(getattr(a, key) == getattr(b, key) for key in keys)


def _close(connection: _Closable) -> None:
    """A connection that is being forgotten may be dead already; that must not keep the others open."""
    try:
        connection.close()
    except VaporError as error:
        _log.debug("closing a dead connection: %s", error)
