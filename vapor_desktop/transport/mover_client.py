"""``engine.ports.Mover`` over one SSH channel on which ``vapor-site mover`` runs between cycles."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from vapor_desktop.engine.ports import Cleared, ImageInfo
from vapor_desktop.model.errors import (
    ApiVersionMismatch,
    HostKeyChanged,
    ProtocolError,
    SiteUnreachable,
    TransferCancelled,
    TransferInterrupted,
    VaporError,
    from_wire,
)
from vapor_desktop.model.wire import MOVER_PROTOCOL, Progress, Scrubbed, ScrubSlice, TpmState, Transfer, Transferred
from vapor_desktop.transport.api_client import parsed
from vapor_desktop.transport.relay import RelayBoard
from vapor_desktop.transport.ssh import LineChannel

HELLO_TIMEOUT_S = 20.0
CANCEL_TIMEOUT_S = 30.0  # after that the channel is closed, which ends the mover
VERB_TIMEOUT_S = 120.0  # verbs about one image file
_NOBODY = 0  # the number of a request whose answer nobody waits for
_LOOK_S = 0.2  # how often a waiting caller asks whether it is cancelled

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Message:
    kind: Literal["progress", "result", "error", "ended"]
    data: Any = None


@dataclass(slots=True)
class _Line:
    """One life of the channel: its reader, and who waits for which answer."""

    channel: LineChannel
    waiting: dict[int, queue.SimpleQueue[_Message]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    relays: RelayBoard | None = None
    ended: bool = False
    last_words: str = ""


class SshMover:
    """Opens the channel on first use and again after it died. Thread-safe; several VMs' transfers at once.

    open_channel: runs ``mover`` at the source and gives its channel; raises SiteUnreachable, HostKeyChanged,
    NotAllowed. site_id: who must answer. Besides the mover's own errors raises TransferInterrupted when the
    channel dies, ApiVersionMismatch when the mover speaks another protocol.
    relays: for a pair whose sites do not reach each other, makes the board on which one channel's relays are
    joined; the channel must then run ``mover --relay``.
    """

    def __init__(
        self,
        open_channel: Callable[[], LineChannel],
        site_id: str,
        relays: Callable[[], RelayBoard] | None = None,
    ) -> None:
        self._open_channel = open_channel
        self._site_id = site_id
        self._relays = relays
        self.route = "direct" if relays is None else "relay"
        self._retired = False
        self._lock = threading.Lock()
        self._line: _Line | None = None
        self._next_id = 1

    def transfer(
        self, request: Transfer, on_progress: Callable[[Progress], None], cancelled: Callable[[], bool]
    ) -> Transferred:
        """Make one point at the peer. ``on_progress`` is called in this thread."""
        with self._telling_route():
            answer = self._ask("transfer", request.model_dump(mode="json"), on_progress, cancelled)
        result: Transferred = parsed(Transferred, answer, "The mover")
        return result

    def scrub(self, request: ScrubSlice, cancelled: Callable[[], bool]) -> Scrubbed:
        """Compare a slice of the disks' digests."""
        with self._telling_route():
            answer = self._ask("scrub", request.model_dump(mode="json"), lambda progress: None, cancelled)
        result: Scrubbed = parsed(Scrubbed, answer, "The mover")
        return result

    def image_info(self, path: str) -> ImageInfo:
        """A stopped VM's image."""
        answer = self._quick("image-info", path=path)
        info: ImageInfo = parsed(ImageInfo, answer, "The mover")
        return info

    def tpm_state(self, vm_uuid: str) -> TpmState:
        """Of a VM at the source."""
        state: TpmState = parsed(TpmState, self._quick("tpm-state", vm_uuid=vm_uuid), "The mover")
        return state

    def add_bitmap(self, path: str, name: str) -> None:
        """A persistent bitmap in a stopped VM's image. Idempotent."""
        self._quick("add-bitmap", path=path, name=name)

    def remove_bitmap(self, path: str, name: str) -> None:
        """Of a stopped VM's image. Idempotent."""
        self._quick("remove-bitmap", path=path, name=name)

    def clear_bitmap(self, path: str, name: str, expect_stamp: str) -> Cleared:
        """Not cleared when the image changed since."""
        answer = self._quick("clear-bitmap", path=path, name=name, expect_stamp=expect_stamp)
        cleared: Cleared = parsed(Cleared, answer, "The mover")
        return cleared

    def close(self) -> None:
        """End of the mover's input: it ends, and the receiver keeps what is durable."""
        with self._lock:
            line, self._line = self._line, None
        if line is not None:
            _end(line)

    def retire(self) -> None:
        """Close it as soon as nobody waits for an answer: another mover takes its place (the route changed)."""
        self._retired = True
        self._close_if_idle()

    def drop_relays(self) -> None:
        """End the relays, if any; a transfer that runs on one is interrupted and may be tried again."""
        with self._lock:
            line = self._line
        if line is not None and line.relays is not None:
            self._discard(line)

    # --- asking -----------------------------------------------------------------------------------
    @contextmanager
    def _telling_route(self) -> Iterator[None]:
        """Errors of the way between the sites say which way that was."""
        try:
            yield
        except (SiteUnreachable, TransferInterrupted, HostKeyChanged) as error:
            error.details["route"] = self.route
            error.why = f"{error.why} (route: {self.route})" if error.why else f"route: {self.route}"
            if self.route == "direct" and isinstance(error, SiteUnreachable):
                error.fix = f"{error.fix}; if the sites cannot reach each other, pair them again: the console relays"
            raise

    def _close_if_idle(self) -> None:
        with self._lock:
            line = self._line
        if not self._retired or line is None:
            return
        with line.lock:
            busy = bool(line.waiting)
        if not busy:
            self._discard(line)

    def _quick(self, verb: str, **params: Any) -> Any:
        deadline = time.monotonic() + VERB_TIMEOUT_S
        try:
            return self._ask(verb, params, lambda progress: None, lambda: time.monotonic() > deadline)
        except TransferCancelled as error:
            raise SiteUnreachable(f"The mover did not answer “{verb}” within {VERB_TIMEOUT_S:g} s") from error

    def _ask(
        self, verb: str, params: Any, on_progress: Callable[[Progress], None], cancelled: Callable[[], bool]
    ) -> Any:
        line, number, answers = self._asked(verb, params)
        try:
            return self._wait(line, number, answers, on_progress, cancelled)
        finally:
            with line.lock:
                line.waiting.pop(number, None)
            self._close_if_idle()

    def _asked(self, verb: str, params: Any) -> tuple[_Line, int, queue.SimpleQueue[_Message]]:
        """The request, sent. A channel that died while idle is noticed here, and one new one is tried."""
        for again in (True, False):
            line = self._living()
            try:
                number, answers = self._enter(line)
                self._send(line, {"id": number, "verb": verb, "params": params})
            except TransferInterrupted:
                self._discard(line)
                if not again:
                    raise
            else:
                break
        return line, number, answers

    def _wait(
        self,
        line: _Line,
        number: int,
        answers: queue.SimpleQueue[_Message],
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> Any:
        give_up_at: float | None = None
        while True:
            if give_up_at is None and cancelled():
                give_up_at = time.monotonic() + CANCEL_TIMEOUT_S
                self._send(line, {"id": self._number(), "verb": "cancel", "params": {"id": number}})
            if give_up_at is not None and time.monotonic() > give_up_at:
                self._discard(line)
                raise TransferCancelled("Cancelled; the mover did not stop by itself, so its channel was closed")
            try:
                message = answers.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            if message.kind == "progress":
                on_progress(parsed(Progress, message.data, "The mover"))
            elif message.kind == "result":
                return message.data
            else:
                raise from_wire(message.data) if message.kind == "error" else _interrupted(line)

    def _enter(self, line: _Line) -> tuple[int, queue.SimpleQueue[_Message]]:
        number = self._number()
        answers: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        with line.lock:
            if line.ended:
                raise _interrupted(line)
            line.waiting[number] = answers
        return number, answers

    def _number(self) -> int:
        with self._lock:
            self._next_id += 1
            return self._next_id

    @staticmethod
    def _send(line: _Line, value: Any) -> None:
        try:
            line.channel.send(value)
        except SiteUnreachable as error:
            raise _interrupted(line) from error

    # --- the channel's life -------------------------------------------------------------------------
    def _living(self) -> _Line:
        with self._lock:
            if self._line is None or self._line.ended:
                self._line = self._opened()
            return self._line

    def _discard(self, line: _Line) -> None:
        """This channel is of no use; whoever else waits on it is told by its reader."""
        with self._lock:
            if self._line is line:
                self._line = None
        _end(line)

    def _opened(self) -> _Line:
        line = _Line(self._open_channel(), relays=None if self._relays is None else self._relays())
        hello: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(line, hello), name=f"mover {self._site_id}", daemon=True).start()
        try:
            self._check(line, hello.get(timeout=HELLO_TIMEOUT_S))
        except queue.Empty as error:
            _end(line)
            raise TransferInterrupted(
                "The mover did not greet", why=f"nothing within {HELLO_TIMEOUT_S:g} s", stderr=line.last_words
            ) from error
        except VaporError:
            _end(line)
            raise
        return line

    def _check(self, line: _Line, first: Any) -> None:
        if first is None:
            raise _interrupted(line, "The mover did not start")
        if isinstance(first, VaporError):
            raise first
        hello = first.get("hello") if isinstance(first, dict) else None
        if not isinstance(hello, dict):
            raise ProtocolError("The mover did not greet first")
        if hello.get("mover_protocol") != MOVER_PROTOCOL:
            raise ApiVersionMismatch(
                f"The mover speaks protocol {hello.get('mover_protocol')}, this program {MOVER_PROTOCOL}"
            )
        if hello.get("site_id") != self._site_id:
            raise ProtocolError(
                "The mover belongs to another site", site_id=hello.get("site_id"), expected=self._site_id
            )


def _read(line: _Line, hello: queue.SimpleQueue[Any]) -> None:
    """The channel's reader: the first line is the greeting, every other goes to who asked.

    However it ends, everybody who waits is told.
    """
    greeted = False
    try:
        for value in line.channel.lines():
            if not greeted:
                greeted = True
                hello.put(value)
            else:
                _dispatch(line, value)
    except VaporError as error:
        _log.warning("the mover's channel is of no use any more: %s", error)
        if not greeted:
            hello.put(error)
    finally:
        _end(line)
        line.last_words = line.channel.last_words()
        with line.lock:
            line.ended = True
            waiting = list(line.waiting.values())
        hello.put(None)
        for answers in waiting:
            answers.put(_Message("ended"))


def _dispatch(line: _Line, value: Any) -> None:
    if isinstance(value, dict) and value.get("event") == "relay" and line.relays is not None:
        _join(line, line.relays, value.get("data"))
        return
    if not isinstance(value, dict) or not isinstance(value.get("id"), int):
        raise ProtocolError("The mover answered nobody", got=str(value)[:200])
    with line.lock:
        answers = line.waiting.get(value["id"])
    if answers is None:
        return  # the answer to a cancel, or to a caller that gave up
    if value.get("event") == "progress":
        answers.put(_Message("progress", value.get("data")))
    elif "error" in value:
        answers.put(_Message("error", value["error"]))
    elif "result" in value:
        answers.put(_Message("result", value["result"]))
    # Events of kinds we do not know are news of a newer mover: they change nothing for us.


def _join(line: _Line, relays: RelayBoard, data: Any) -> None:
    """The mover asks for a relay: joined in a thread of its own, for SSH and the keyring take their time."""
    if not isinstance(data, dict):
        raise ProtocolError("The mover asked for a relay without saying which")
    meeting, peer_site = str(data.get("meeting")), str(data.get("peer_site"))

    def ended(error: VaporError) -> None:
        params = {"meeting": meeting, "error": error.to_wire()}
        try:
            line.channel.send({"id": _NOBODY, "verb": "relay-ended", "params": params})
        except SiteUnreachable:
            _log.debug("the mover of an ended relay is gone too")

    threading.Thread(target=relays.join, args=(meeting, peer_site, ended), name="relay join", daemon=True).start()


def _end(line: _Line) -> None:
    """The mover goes first: what its receivers have by then is durable. Idempotent."""
    line.channel.close()
    if line.relays is not None:
        line.relays.close()


def _interrupted(line: _Line, what: str = "The transfer broke off") -> TransferInterrupted:
    return TransferInterrupted(what, why="the SSH channel of the mover ended", stderr=line.last_words)
