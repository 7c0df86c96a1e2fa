"""The relay: two OpenSSH processes joined by OS pipes, when two sites cannot reach each other.

Bytes go from one ``ssh`` to the other in the kernel and never through this program. They are decrypted in
this machine's memory on the way. Each relay has connections of its own: on a shared one, disk data would
stand in the way of libvirt's calls, and sshd allows 10 sessions on a connection [sshd_config MaxSessions].
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import IO
from uuid import UUID

from vapor_desktop.model.errors import (
    NotAllowed,
    ProtocolError,
    SiteUnreachable,
    TransferInterrupted,
    Unexpected,
    VaporError,
)
from vapor_desktop.model.sites import Site
from vapor_desktop.transport.ssh import check_host_key, place
from vapor_desktop.transport.ssh_files import SshFiles

SSH_FAILED = 255
REFUSED = 77  # the site's dispatcher [docs/protocols]
PIPE_BYTES = 1 << 20
END_S = 5.0  # the second end sees the first one's end by itself
_STDERR_TAIL = 2000

_log = logging.getLogger(__name__)


class Relay:
    """One joined link. ``on_end(error)`` is called once, from a thread of the relay's own."""

    def __init__(
        self, files: SshFiles, source: Site, target: Site, meeting: str, on_end: Callable[[VaporError], None]
    ) -> None:
        """Start both. Raises Unexpected when ssh cannot be started, and what the keyring raises."""
        self._on_end = on_end
        self._closing = False
        to_target, to_source = _pipe(), _pipe()
        try:
            self._source = _End(files, source, ["relay-source", meeting], to_source[0], to_target[1])
            try:
                self._target = _End(files, target, ["relay-receive", source.site_id], to_target[0], to_source[1])
            except BaseException:
                self._source.end()
                raise
        finally:
            for fd in (*to_target, *to_source):
                os.close(fd)  # only the two processes hold them: each sees the other's end
        self._watcher = threading.Thread(target=self._watch, name=f"relay {meeting}", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """End both processes; what the receiver has is durable. Returns when they are gone."""
        self._closing = True
        for end in (self._source, self._target):
            end.terminate()
        self._watcher.join(2 * END_S)

    def _watch(self) -> None:
        first = _first_to_end(self._target, self._source)
        for end in (self._source, self._target):
            end.wait(END_S)
        try:
            error = TransferInterrupted("The console ended the relay") if self._closing else first.error()
        finally:
            for end in (self._source, self._target):
                end.close()
        _log.info("a relay ended: %s", error)
        self._on_end(error)


class _End:
    """One of the two processes."""

    def __init__(self, files: SshFiles, site: Site, words: list[str], stdin: int, stdout: int) -> None:
        self._site = site
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        argv = files.argv(site, *words, shared=False)
        try:
            # A session of its own: the terminal's ^C is the engine's to answer, not the relay's.
            self._process = subprocess.Popen(
                argv, stdin=stdin, stdout=stdout, stderr=self._errors, start_new_session=True
            )
        except OSError as error:
            self._errors.close()
            raise Unexpected("Cannot start ssh for a relay", why=error.strerror or "", program=argv[0]) from error
        self.pidfd = os.pidfd_open(self._process.pid)

    def terminate(self) -> None:
        """Idempotent."""
        self._process.terminate()

    def wait(self, timeout_s: float) -> None:
        """Until it has ended; by force after that time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """By force, at once."""
        self._process.kill()
        self._process.wait()
        self.close()

    def close(self) -> None:
        """It has ended."""
        os.close(self.pidfd)
        self._errors.close()

    def error(self) -> VaporError:
        """Why it ended, told apart by exit code; a failed ssh is looked into, as we alone can say why."""
        code, words = self._process.returncode, self._last_words()
        if code == SSH_FAILED:
            try:
                check_host_key(self._site)
            except VaporError as error:
                return error
            return SiteUnreachable(f"The console's SSH connection to {place(self._site)} broke off", why=words)
        if code == REFUSED:
            return NotAllowed(
                f"{place(self._site)} does not take part in a relay",
                why=words,
                fix="Pair the sites again; vapor-site there may be older than this program",
            )
        return TransferInterrupted(
            "The relay through the console ended", why=words, site=self._site.name, exit_code=code
        )

    def _last_words(self) -> str:
        size = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), _STDERR_TAIL, max(0, size - _STDERR_TAIL))
        lines = tail.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class RelayBoard:
    """The relays of one mover's channel. Thread-safe; ``close`` is for good."""

    def __init__(self, files: SshFiles, source: Site, target: Site) -> None:
        self._files = files
        self._source = source
        self._target = target
        self._lock = threading.Lock()
        self._relays: dict[str, Relay] = {}
        self._closed = False

    def join(self, meeting: str, peer_site: str, on_end: Callable[[VaporError], None]) -> None:
        """Join a relay. ``on_end`` is told why it ended, also why it could not begin; it may raise nothing."""
        try:
            if peer_site != self._target.site_id or str(UUID(meeting)) != meeting:
                raise ProtocolError("The mover asked for a relay that is not its own", peer_site=peer_site)
            self._start(meeting, on_end)
        except ValueError:
            on_end(ProtocolError("The mover asked for a relay without a meeting"))
        except VaporError as error:
            on_end(error)

    def _start(self, meeting: str, on_end: Callable[[VaporError], None]) -> None:
        with self._lock:
            if self._closed:
                raise TransferInterrupted("The mover's channel is closed")

            def ended(error: VaporError) -> None:
                with self._lock:
                    self._relays.pop(meeting, None)
                on_end(error)

            self._relays[meeting] = Relay(self._files, self._source, self._target, meeting, ended)

    def close(self) -> None:
        """End them all."""
        with self._lock:
            self._closed = True
            relays = list(self._relays.values())
        for relay in relays:
            relay.close()


def _pipe() -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    with suppress(PermissionError):  # over the user's pipe quota: it works, slower
        fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return ends


def _first_to_end(*ends: _End) -> _End:
    """Waits until one has ended; of two at once the first of ``ends``."""
    poll = select.poll()
    for end in ends:
        poll.register(end.pidfd, select.POLLIN)
    ended = {fd for fd, _ in poll.poll()}
    return next(end for end in ends if end.pidfd in ended)
