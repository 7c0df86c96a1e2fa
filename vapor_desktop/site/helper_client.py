"""Asking the root helper. One connection per question; an export lives as long as its connection."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vapor_desktop.model.errors import NotAllowed, Unexpected, from_wire

TIMEOUT_S = 30.0
ANSWER_LIMIT_BYTES = 128 << 20


class HelperClient:
    """The verbs of ``vapor-site helper`` at a socket (``settings.helper_socket``).

    Every verb raises NotAllowed when the helper does not run or refuses the path, NotFound for a missing
    file, ImageToolFailed when qemu-img or qemu-nbd failed.
    """

    def __init__(self, socket_path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._path = socket_path
        self._timeout_s = timeout_s

    def ping(self) -> bool:
        """True when the helper answers; False when it does not run, or not in time."""
        try:
            self._ask("ping")
        except (NotAllowed, OSError):
            return False
        return True

    def read_nvram(self, vm_uuid: str, path: str) -> bytes:
        """The varstore of a VM."""
        return base64.b64decode(self._ask("read-nvram", vm=vm_uuid, path=path)["data"])

    def place_nvram(self, path: str, data: bytes) -> None:
        """Write a new varstore below the NVRAM roots. Raises Conflict when another one lies there."""
        self._ask("place-nvram", path=path, data=base64.b64encode(data).decode())

    def read_tpm(self, vm_uuid: str) -> bytes:
        """The permanent state of a VM's emulated TPM, as a tar archive. Raises NotFound where there is none."""
        return base64.b64decode(self._ask("read-tpm", vm=vm_uuid)["data"])

    def place_tpm(self, vm_uuid: str, archive: bytes) -> str | None:
        """Make it the TPM state of a VM that is off; the path where another one is kept now, None: there was none.

        Raises Conflict while a TPM runs on what lies there. Idempotent.
        """
        answer = self._ask("place-tpm", vm=vm_uuid, data=base64.b64encode(archive).decode())
        return str(answer["kept"]) or None

    def image_info(self, path: str) -> dict[str, Any]:
        """``qemu-img info`` of the top image, plus ``"chain"``: the paths of all files it is read through."""
        return dict(self._ask("image-info", image=path)["info"])

    def bitmap_add(self, image: str, name: str) -> None:
        """Add a persistent bitmap to a stopped VM's qcow2. Idempotent."""
        self._ask("image-bitmap-add", image=image, name=name)

    def bitmap_remove(self, image: str, name: str) -> None:
        """Remove a persistent bitmap of ours (``vapor-…``) from a stopped VM's qcow2. Idempotent."""
        self._ask("image-bitmap-remove", image=image, name=name)

    def bitmap_clear(self, image: str, name: str, expect_stamp: str) -> tuple[bool, str]:
        """Empty a persistent bitmap of ours: (True, the stamp after it); (False, …) when it was written since."""
        answer = self._ask("image-bitmap-clear", image=image, name=name, expect_stamp=expect_stamp)
        return bool(answer["cleared"]), str(answer["stamp"])

    def image_adopt(self, image: str) -> dict[str, Any]:
        """Let QEMU's group at a stopped VM's image: ``format``, ``size_bytes``, ``chain`` (files), ``stamp``.

        Raises Conflict while somebody writes it, NotFound.
        """
        return dict(self._ask("image-adopt", image=image))

    def image_stamp(self, image: str) -> tuple[str, bool]:
        """(what changes with every write to the image, does anybody have it open for writing)."""
        answer = self._ask("image-stamp", image=image)
        return str(answer["stamp"]), bool(answer["writer"])

    @contextmanager
    def offline_export(self, image: str, fmt: str, bitmap: str | None, export: str = "") -> Iterator[str]:
        """A read-only NBD export of a stopped VM's image: the unix socket's path, for the length of the block."""
        request = {"image": image, "format": fmt, "bitmap": bitmap or "-", "export": export}
        with self._connect() as link:
            yield str(_answer(link, "offline-export", request)["socket"])

    def _ask(self, verb: str, **params: str) -> dict[str, Any]:
        with self._connect() as link:
            return _answer(link, verb, params)

    @contextmanager
    def _connect(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(self._timeout_s)
            try:
                link.connect(str(self._path))
            except OSError as error:
                raise NotAllowed(
                    "The root helper does not answer",
                    why=f"{self._path}: {error.strerror or error}",
                    fix="Start it with `systemctl enable --now vapor-helper.socket`",
                ) from error
            yield link


def _answer(link: socket.socket, verb: str, params: dict[str, str]) -> dict[str, Any]:
    with suppress(BrokenPipeError):  # it may refuse us and hang up before it reads; its answer says why
        link.sendall(json.dumps({"verb": verb, **params}).encode() + b"\n")
    raw = bytearray()
    while not raw.endswith(b"\n"):
        chunk = link.recv(1 << 20)
        if not chunk:
            raise Unexpected("The root helper closed the connection without an answer", verb=verb)
        raw += chunk
        if len(raw) > ANSWER_LIMIT_BYTES:
            raise Unexpected("The root helper's answer is too long", verb=verb)
    value = json.loads(raw)
    if "error" in value:
        raise from_wire(value["error"])
    return dict(value["ok"])
