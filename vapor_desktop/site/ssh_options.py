"""How this site's own OpenSSH reaches a peer: nothing of the user's configuration, only our pins."""

from __future__ import annotations

import shutil

from vapor_desktop.model.wire import EnrolPeer
from vapor_desktop.site.settings import SiteSettings

CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr,aes128-ctr"
CONNECT_TIMEOUT_S = 10
ALIVE_INTERVAL_S = 15
ALIVE_COUNT = 3  # a dead link ends the ssh after 45 s


def host_key_alias(site_id: str) -> str:
    """The name under which a peer's host keys are pinned: its identity, never its address."""
    return f"vapor-{site_id}"


def peer_ssh_argv(settings: SiteSettings, peer: EnrolPeer) -> list[str]:
    """The argument list up to and including ``--`` and the host; append the verb.

    ``[*peer_ssh_argv(settings, peer), "receive"]``. Never through a shell. aes128-gcm first: the fastest
    where the CPU has AES [facts/libvirt 3.3]. No connection sharing: the mover's channel is its own.
    """
    options = {
        "UserKnownHostsFile": str(settings.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": host_key_alias(peer.site_id),
        "CheckHostIP": "no",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "VerifyHostKeyDNS": "no",
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
        "ControlMaster": "no",
        "ControlPath": "none",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "RequestTTY": "no",
        "ConnectTimeout": str(CONNECT_TIMEOUT_S),
        "ConnectionAttempts": "1",
        "ServerAliveInterval": str(ALIVE_INTERVAL_S),
        "ServerAliveCountMax": str(ALIVE_COUNT),
        "TCPKeepAlive": "yes",
        "Ciphers": CIPHERS,
        "Compression": "no",
        "IPQoS": "throughput",
        "LogLevel": "ERROR",
    }
    argv = [shutil.which("ssh") or "/usr/bin/ssh", "-F", "none", "-T", "-i", str(settings.ssh_key)]
    for key, value in options.items():
        argv += ["-o", f"{key}={value}"]
    return [*argv, "-p", str(peer.port), "-l", peer.user, "--", peer.address]
