"""Asking the bubble helper: a probe lives as long as this object holds its connection."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vapor_desktop.model.drills import DrillNet, LeakTarget
from vapor_desktop.model.errors import NotAllowed, Unexpected, from_wire

START_S, ANSWER_S = 20.0, 20.0


class ProbeLink:
    """One living probe. Thread-safe. Raises Unexpected once it is gone."""

    def __init__(self, path: Path, net: DrillNet) -> None:
        self._lock = threading.Lock()
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._link.settimeout(START_S)
            self._link.connect(str(path))
            self._file = self._link.makefile("r")
            request = {"verb": "probe", "bridge": net.bridge, "port": net.port, "gateway": net.gateway}
            self.seen: dict[str, Any] = self._exchange(request)
        except OSError as error:
            self._link.close()
            raise NotAllowed(
                "The bubble helper does not answer",
                why=f"{path}: {error.strerror or error}",
                fix="Start it with `systemctl enable --now vapor-bubble.socket`",
            ) from error
        except BaseException:
            self._link.close()
            raise
        self.hosts(net.hosts)

    def hosts(self, hosts: Mapping[str, str]) -> None:
        """Who gets which address from now on."""
        self._ask({"ask": "hosts", "hosts": dict(hosts)})

    def leases(self) -> dict[str, str]:
        """MAC -> address, of the cards that asked and have one now."""
        return dict(self._ask({"ask": "leases"})["leases"])

    def tcp(self, address: str, port: int) -> tuple[bool, str]:
        """(does it accept, the kernel's word)."""
        answer = self._ask({"ask": "tcp", "address": address, "port": port})
        return bool(answer["open"]), str(answer["text"])

    def leaks(self, targets: Sequence[LeakTarget]) -> list[str]:
        """Per target: "" when nothing came back."""
        asked = [{"address": t.address, "port": t.port} for t in targets]
        return [str(text) for text in self._ask({"ask": "leaks", "targets": asked})["answers"]]

    def alive(self) -> bool:
        """Does it still answer?"""
        try:
            self.leases()
        except Unexpected:
            return False
        return True

    def close(self) -> None:
        """End it."""
        self._link.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._link.settimeout(ANSWER_S)
            try:
                return self._exchange(request)
            except OSError as error:
                raise Unexpected("The bubble's probe is gone", why=str(error)) from error

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        self._link.sendall(json.dumps(request).encode() + b"\n")
        line = self._file.readline()
        if not line:
            raise Unexpected("The bubble's probe is gone", why="it closed the connection")
        value = json.loads(line)
        if "error" in value:
            if isinstance(value["error"], dict):
                raise from_wire(value["error"])
            raise Unexpected("The bubble's probe failed", why=str(value["error"]))
        return dict(value["ok"])


def answers(path: Path) -> bool:
    """Does the bubble helper answer?"""
    try:
        _one(path, {"verb": "ping"})
    except NotAllowed:
        return False
    return True


def forget_logs(path: Path, names: Sequence[str]) -> None:
    """Remove libvirt's logs of drills' VMs; they are root's. Raises NotAllowed when the helper does not answer."""
    _one(path, {"verb": "forget-logs", "names": list(names)})


def _one(path: Path, request: dict[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(ANSWER_S)
        try:
            link.connect(str(path))
            link.sendall(json.dumps(request).encode() + b"\n")
            line = link.makefile("r").readline()
        except OSError as error:
            raise NotAllowed(
                "The bubble helper does not answer",
                why=f"{path}: {error.strerror or error}",
                fix="Start it with `systemctl enable --now vapor-bubble.socket`",
            ) from error
    value = json.loads(line or "{}")
    if "error" in value:
        raise from_wire(value["error"])
