"""Asking a peer over SSH, by the same argv as the mover: can it be reached, who owns these VMs?"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from vapor_desktop.model.errors import (
    HostKeyChanged,
    NotAllowed,
    NotAVaporSite,
    SiteUnreachable,
    VaporError,
    from_wire,
)
from vapor_desktop.model.wire import EnrolPeer, OwnerWord
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.site.ssh_options import CONNECT_TIMEOUT_S, peer_ssh_argv

CHECK_TIMEOUT_S = CONNECT_TIMEOUT_S + 10
STOP_CHECK_S = 0.5
OWNERS_AT_ONCE = 100  # VMs in one question
SSH_FAILED = 255  # ssh's own failure; anything else is the far command's exit code


def check_peer(settings: SiteSettings, peer: EnrolPeer) -> float:
    """Seconds that one ``ssh peer ping`` took, interpreter start at the peer included.

    Raises SiteUnreachable, HostKeyChanged, NotAllowed (our key is not enrolled there), NotAVaporSite
    (another site, or not vapor-site, answers).
    """
    begun = time.monotonic()
    answered = _ask(settings, peer, ["ping"]).get("site_id")
    took_s = time.monotonic() - begun
    if answered != peer.site_id:
        raise NotAVaporSite(f"Another site answers at {peer.address}", answered=answered, **_at(peer))
    return took_s


def ask_owners(
    settings: SiteSettings, peer: EnrolPeer, vms: Sequence[str], stop: threading.Event | None = None
) -> dict[str, OwnerWord | VaporError]:
    """What the peer knows of each VM. Raises as ``check_peer``; SiteUnreachable also when ``stop`` cut it short."""
    found: dict[str, OwnerWord | VaporError] = {}
    for first in range(0, len(vms), OWNERS_AT_ONCE):
        some = vms[first : first + OWNERS_AT_ONCE]
        owners: Any = _ask(settings, peer, ["owners", *some], stop).get("owners")
        for vm in some:
            try:
                answer = dict(owners[vm])
                found[vm] = from_wire(answer["error"]) if "error" in answer else OwnerWord.model_validate(answer)
            except (KeyError, TypeError, ValueError, ValidationError) as error:
                raise NotAVaporSite(f"{peer.name} did not say who owns a VM", why=str(error), **_at(peer)) from error
    return found


def _ask(
    settings: SiteSettings, peer: EnrolPeer, words: Sequence[str], stop: threading.Event | None = None
) -> dict[str, Any]:
    """One verb, its one line of JSON. Raises SiteUnreachable, HostKeyChanged, NotAllowed, NotAVaporSite."""
    _require_open_port(peer)
    argv = [*peer_ssh_argv(settings, peer), *words]
    deadline = time.monotonic() + CHECK_TIMEOUT_S
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        while True:
            try:
                out, err = child.communicate(timeout=STOP_CHECK_S)
                break
            except subprocess.TimeoutExpired as error:
                if time.monotonic() < deadline and not (stop and stop.is_set()):
                    continue
                child.kill()
                raise SiteUnreachable(
                    f"{peer.name} did not answer over SSH in {CHECK_TIMEOUT_S} s", **_at(peer)
                ) from error
    if child.returncode != 0:
        raise _translate(settings, peer, child.returncode, err)
    try:
        return dict(json.loads(out))
    except (ValueError, TypeError) as error:
        raise NotAVaporSite(f"What answers SSH at {peer.address} is not vapor-site", **_at(peer)) from error


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


def _translate(settings: SiteSettings, peer: EnrolPeer, code: int, stderr: bytes) -> VaporError:
    """ssh has one exit code for all its failures, so what it could be is looked at, not read from its words."""
    words = stderr.decode(errors="replace").strip()[-2000:]
    if code != SSH_FAILED:
        return NotAVaporSite(
            f"{peer.name} let us in, but its vapor-site did not answer",
            why=words,
            fix="Check `vapor-site doctor` there, and that sshd's forced command finds vapor-site",
            exit_code=code,
            **_at(peer),
        )
    offered = _offered_keys(peer)
    if offered and not offered & set(peer.host_keys):
        changed = f"The SSH host key of {peer.name} is not the one that was pinned"
        return HostKeyChanged(changed, why="nothing was sent", ssh=words, **_at(peer))
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
