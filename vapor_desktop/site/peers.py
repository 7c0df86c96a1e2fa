"""Can this site reach its peer over SSH? The same argv the mover uses, the peer's own ``ping``."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from typing import Any

from vapor_desktop.model.errors import HostKeyChanged, NotAllowed, NotAVaporSite, SiteUnreachable, VaporError
from vapor_desktop.model.wire import EnrolPeer
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.site.ssh_options import CONNECT_TIMEOUT_S, peer_ssh_argv

CHECK_TIMEOUT_S = CONNECT_TIMEOUT_S + 10
SSH_FAILED = 255  # ssh's own failure; anything else is the far command's exit code


def check_peer(settings: SiteSettings, peer: EnrolPeer) -> float:
    """Seconds that one ``ssh peer ping`` took, interpreter start at the peer included.

    Raises SiteUnreachable, HostKeyChanged, NotAllowed (our key is not enrolled there), NotAVaporSite
    (another site, or not vapor-site, answers).
    """
    _require_open_port(peer)
    begun = time.monotonic()
    argv = [*peer_ssh_argv(settings, peer), "ping"]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SiteUnreachable(f"{peer.name} did not answer over SSH in {CHECK_TIMEOUT_S} s", **_at(peer)) from error
    took_s = time.monotonic() - begun
    if done.returncode != 0:
        raise _translate(settings, peer, done)
    try:
        answered = json.loads(done.stdout)["site_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise NotAVaporSite(f"What answers SSH at {peer.address} is not vapor-site", **_at(peer)) from error
    if answered != peer.site_id:
        raise NotAVaporSite(f"Another site answers at {peer.address}", answered=answered, **_at(peer))
    return took_s


def _require_open_port(peer: EnrolPeer) -> None:
    """Tells a closed port from trouble inside SSH without reading ssh's words."""
    try:
        socket.create_connection((peer.address, peer.port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise SiteUnreachable(
            f"{peer.name} cannot be reached over SSH",
            why=f"{peer.address} port {peer.port}: {error.strerror or error}",
            fix="Check that sshd runs there and that the firewall lets this host in",
            **_at(peer),
        ) from error


def _translate(settings: SiteSettings, peer: EnrolPeer, done: subprocess.CompletedProcess[bytes]) -> VaporError:
    """ssh has one exit code for all its failures, so what it could be is looked at, not read from its words."""
    words = done.stderr.decode(errors="replace").strip()[-2000:]
    if done.returncode != SSH_FAILED:
        return NotAVaporSite(
            f"{peer.name} let us in, but its vapor-site did not answer",
            why=words,
            fix="Check `vapor-site doctor` there, and that sshd's forced command finds vapor-site",
            exit_code=done.returncode,
            **_at(peer),
        )
    offered = _offered_keys(peer)
    if offered and not offered & set(peer.host_keys):
        return HostKeyChanged(f"The SSH host key of {peer.name} is not the pinned one", why=words, **_at(peer))
    return NotAllowed(
        f"{peer.name} refused this site's SSH key",
        why=words,
        fix="Pair the two sites again; look into authorized_keys and the sshd log there",
        **_at(peer),
    )


def _offered_keys(peer: EnrolPeer) -> set[str]:
    """The host keys sshd shows now, for comparing only; nothing is trusted through this."""
    argv = ["ssh-keyscan", "-T", str(CONNECT_TIMEOUT_S), "-p", str(peer.port), "--", peer.address]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=CHECK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    lines = [line.split() for line in done.stdout.decode(errors="replace").splitlines() if not line.startswith("#")]
    return {f"{parts[1]} {parts[2]}" for parts in lines if len(parts) >= 3}


def _at(peer: EnrolPeer) -> dict[str, Any]:
    return {"site_id": peer.site_id, "address": peer.address, "port": peer.port}
