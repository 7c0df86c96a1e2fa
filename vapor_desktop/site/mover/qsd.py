"""One ``qemu-storage-daemon`` per receiver, alive between transfers: images in, NBD exports out, by QMP.

It starts in 12 ms where ``qemu-nbd`` takes 1.5-2 s to exit [facts/libvirt 4.2]. QMP runs over its standard
streams; it dies with us (``setpriv --pdeathsig``), and a directory left by a killed receiver is swept by
the next one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from vapor_desktop.model.errors import ImageToolFailed, InvalidRequest

PREFIX = "receive-"
# QEMU takes a fresh buffer for every request; glibc would map and unmap it each time, and a third of the
# daemon's time would go into page faults.
KEEP_BUFFERS = {
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_TOP_PAD_": str(8 << 20),
}
EXPORT_GONE_S = 10.0
SUN_PATH_LIMIT = 107
GROW_BYTES = 32 << 20  # at a time: a file that grows with each direct write takes them one after another


class StorageDaemon:
    """``start`` it from a thread that lives as long as it must: the kernel ends it with that very thread."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count(1)
        self._lock = threading.Lock()
        self._gone: set[str] = set()  # exports whose BLOCK_EXPORT_DELETED has come

    @property
    def directory(self) -> Path:
        """Ours alone (0700), swept when we are gone."""
        if self._dir is None:
            raise InvalidRequest("The storage daemon has not been started")
        return self._dir

    @property
    def socket_path(self) -> Path:
        """The NBD server's socket."""
        return self.directory / "nbd"

    def start(self) -> None:
        """Start it if it is not running. Raises ImageToolFailed."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self._reset()
            _sweep(self._run_dir)
            self._dir = self._run_dir / f"{PREFIX}{os.getpid()}"
            self._dir.mkdir(mode=0o700)
            if len(os.fsencode(self._dir / "nbd")) > SUN_PATH_LIMIT:
                raise InvalidRequest("The run directory's path is too long for a socket", path=str(self._dir))
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "qemu-storage-daemon"),
                    *("--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"),
                    *("--nbd-server", f"addr.type=unix,addr.path={self._dir / 'nbd'},max-connections=0"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **KEEP_BUFFERS},
            )
            self._event_or_answer()  # the greeting
            self._command("qmp_capabilities", {})

    def add(self, image: Path, *, read_only: bool = False, bulk: bool = False) -> str:
        """Open a qcow2 image and export it; the export's name.

        ``bulk``: it is written whole in large pieces, and so past the page cache where the file system can:
        that saves a copy of everything, and what the host has cached for its guests stays.
        Raises ImageToolFailed: locked, damaged, missing, or the daemon does not run.
        """
        name = f"d{next(self._names)}"
        with self._lock:
            node: dict[str, Any] = {
                "driver": "qcow2",
                "node-name": name,
                "read-only": read_only,
                "file": _bulk_file(image) if bulk else _file(image),
                "discard": "unmap",
            }
            self._command("blockdev-add", node)
            try:
                self._command(
                    "block-export-add",
                    {
                        "type": "nbd",
                        "id": name,
                        "node-name": name,
                        "name": name,
                        "writable": not read_only,
                        "allocation-depth": True,
                    },
                )
            except ImageToolFailed:
                self._command("blockdev-del", {"node-name": name})
                raise
        return name

    def has_backing(self, name: str) -> bool:
        """Does the image stand on another one?"""
        with self._lock:
            nodes = self._command("query-named-block-nodes", {"flat": True})
        return any(n.get("node-name") == name and "backing_file" in n for n in nodes)

    def remove(self, name: str) -> None:
        """End the export and close the image; nothing of QEMU has it open afterwards."""
        with self._lock:
            self._gone.discard(name)
            self._command("block-export-del", {"id": name, "mode": "hard"})
            deadline = time.monotonic() + EXPORT_GONE_S
            while name not in self._gone:
                if time.monotonic() > deadline:
                    raise ImageToolFailed("An export does not end", export=name)
                self._command("query-block-exports", {})  # its answer comes behind the event
            self._gone.discard(name)
            self._command("blockdev-del", {"node-name": name})

    def stop(self) -> None:
        """End it; flushes and closes what is still open."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    self._process.kill()
            self._reset()

    @property
    def pid(self) -> int | None:
        """Of the running daemon."""
        return None if self._process is None else self._process.pid

    def _reset(self) -> None:
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            self._process.wait()
            self._process = None
        if self._dir is not None:
            shutil.rmtree(self._dir, ignore_errors=True)
            self._dir = None

    def _command(self, name: str, arguments: Mapping[str, Any]) -> Any:
        process = self._process
        if process is None or process.stdin is None:
            raise ImageToolFailed("The storage daemon is not running")
        try:
            process.stdin.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise ImageToolFailed("The storage daemon is gone", why=error.strerror or "") from error
        while True:
            answer = self._event_or_answer()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                fault = answer["error"]
                raise ImageToolFailed(f"The storage daemon refused {name}", why=str(fault.get("desc", "")), **fault)

    def _event_or_answer(self) -> dict[str, Any]:
        process = self._process
        line = b"" if process is None or process.stdout is None else process.stdout.readline()
        if not line:
            raise ImageToolFailed("The storage daemon is gone")
        message: dict[str, Any] = json.loads(line)
        if message.get("event") == "BLOCK_EXPORT_DELETED":
            self._gone.add(str(message["data"]["id"]))
        return message


def _file(image: Path) -> dict[str, Any]:
    return {"driver": "file", "filename": str(image), "discard": "unmap"}


def _bulk_file(image: Path) -> dict[str, Any]:
    """Direct I/O into a file that grows ahead of what is written; closing it cuts off what was not needed."""
    if not _takes_direct(image):
        return _file(image)
    file = {**_file(image), "cache": {"direct": True}, "aio": "threads"}
    return {"driver": "preallocate", "prealloc-size": GROW_BYTES, "discard": "unmap", "file": file}


def _takes_direct(image: Path) -> bool:
    try:
        os.close(os.open(image, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise ImageToolFailed("The image cannot be opened", why=error.strerror or "", path=str(image)) from error
    return True


def _sweep(run_dir: Path) -> None:
    """Remove the directories of receivers that were killed."""
    for left in run_dir.glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX)
        if pid.isdigit() and (int(pid) == os.getpid() or not Path("/proc", pid).exists()):
            shutil.rmtree(left, ignore_errors=True)
