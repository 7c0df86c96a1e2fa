"""``vapor-site mover``: the engine's hand on a source host. JSON lines in and out (``docs/protocols.md``).

The end of the input ends everything: transfers are cancelled (their NBD clients say goodbye first,
CVE-2024-7409), the sessions to peers end, the receivers keep what is durable.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import IO, Any

from pydantic import ValidationError

from vapor_desktop.model.errors import InvalidRequest, ProtocolError, Unexpected, VaporError, from_wire
from vapor_desktop.model.policy import Value
from vapor_desktop.model.wire import MOVER_PROTOCOL, Progress, ScrubSlice, TpmState, Transfer
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.mover.link import CommandLink, Link
from vapor_desktop.site.mover.peer import PeerPool
from vapor_desktop.site.mover.relay import RelayDesk
from vapor_desktop.site.mover.scrub import Scrub
from vapor_desktop.site.mover.sender import Outgoing
from vapor_desktop.site.settings import SiteSettings, load_settings

log = logging.getLogger(__name__)


class Control:
    """The control channel: reads requests, runs each in a thread of its own, writes events and answers."""

    def __init__(
        self,
        requests: Iterable[bytes],
        answers: IO[bytes],
        pool: PeerPool,
        settings: SiteSettings,
        relay: RelayDesk | None = None,
    ) -> None:
        self._requests = requests
        self._relay = relay
        if relay is not None:
            relay.ask = self._say
        self._answers = answers
        self._pool = pool
        self._settings = settings
        self._helper = HelperClient(settings.helper_socket)
        self._lock = threading.Lock()
        self._running: dict[int, tuple[str | None, Callable[[], None]]] = {}
        self._threads: dict[int, threading.Thread] = {}

    def run(self, site_id: str) -> int:
        """Until the input ends; the exit code."""
        self._say({"hello": {"mover_protocol": MOVER_PROTOCOL, "site_id": site_id}})
        for line in self._requests:
            if line.strip():
                self._request(line)
        self._end()
        return 0

    def _request(self, line: bytes) -> None:
        number = None
        try:
            message = json.loads(line)
            number, verb, params = int(message["id"]), message["verb"], message.get("params", {})
            self._start(number, verb, params)
        except (ValueError, KeyError, TypeError) as error:
            self._fail(number, ProtocolError("A request does not parse", why=str(error)))
        except VaporError as error:
            self._fail(number, error)

    def _start(self, number: int, verb: str, params: dict[str, Any]) -> None:
        if verb == "ping":
            self._say({"id": number, "result": None})
        elif verb == "cancel":
            self._cancel(int(params["id"]))
            self._say({"id": number, "result": None})
        elif verb == "relay-ended" and self._relay is not None:
            self._relay.ended(str(params["meeting"]), from_wire(params["error"]))
            self._say({"id": number, "result": None})
        elif verb == "transfer":
            transfer = _parse(Transfer, params)
            outgoing = Outgoing(
                transfer, self._pool, self._helper, lambda p: self._progress(number, p), self._settings.digests_dir
            )
            self._spawn(number, transfer.vm_uuid, outgoing.run, outgoing.cancel)
        elif verb == "scrub":
            scrub = Scrub(_parse(ScrubSlice, params), self._pool, self._helper, self._settings.state_dir / "scrub")
            self._spawn(number, scrub.request.vm_uuid, scrub.run, scrub.cancel)
        elif verb in _HOST_VERBS:
            self._spawn(number, None, lambda: _HOST_VERBS[verb](self._helper, params), lambda: None)
        else:
            raise ProtocolError(f"Unknown verb {verb!r}")

    def _spawn(
        self, number: int, vm_uuid: str | None, run: Callable[[], Value | Any], cancel: Callable[[], None]
    ) -> None:
        with self._lock:
            if vm_uuid is not None and any(vm == vm_uuid for vm, _ in self._running.values()):
                raise ProtocolError("This VM has a transfer running on this mover already", vm_uuid=vm_uuid)
            self._running[number] = (vm_uuid, cancel)
            thread = threading.Thread(target=self._work, args=(number, run), name=f"request-{number}")
            self._threads[number] = thread
        thread.start()

    def _work(self, number: int, run: Callable[[], Value | Any]) -> None:
        try:
            result = run()
            answer: dict[str, Any] = {
                "result": result.model_dump(mode="json") if isinstance(result, Value) else result
            }
        except VaporError as error:
            answer = {"error": error.to_wire()}
        except Exception as error:
            log.exception("request %d failed unexpectedly", number)
            answer = {"error": Unexpected("The mover failed unexpectedly", why=repr(error)).to_wire()}
        with self._lock:
            del self._running[number]
            del self._threads[number]
        self._say({"id": number, **answer})

    def _cancel(self, number: int) -> None:
        with self._lock:
            running = self._running.get(number)
        if running is not None:  # else it has just ended, which is what was asked for
            running[1]()

    def _progress(self, number: int, progress: Progress) -> None:
        self._say({"id": number, "event": "progress", "data": progress.model_dump(mode="json")})

    def _fail(self, number: int | None, error: VaporError) -> None:
        self._say({"id": number, "error": error.to_wire()})

    def _say(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._lock, suppress(BrokenPipeError):  # the end of the input follows at once and ends us
            self._answers.write(line)
            self._answers.flush()

    def _end(self) -> None:
        with self._lock:
            running, threads = list(self._running.values()), list(self._threads.values())
        for _, cancel in running:
            cancel()
        if self._relay is not None:
            self._relay.close()
        for thread in threads:
            thread.join()
        self._pool.close()


def _image_info(helper: HelperClient, params: dict[str, Any]) -> dict[str, Any]:
    info = helper.image_info(str(params["path"]))
    data = info.get("format-specific", {}).get("data", {})
    found = data.get("bitmaps", [])
    return {
        "virtual_size_bytes": info["virtual-size"],
        "format": info["format"],
        "bitmaps": {b["name"]: "in-use" not in b.get("flags", ()) for b in found},
        "stamp": info["stamp"],
        "qcow2_compat": data.get("compat"),
    }


def _add_bitmap(helper: HelperClient, params: dict[str, Any]) -> None:
    helper.bitmap_add(str(params["path"]), str(params["name"]))


def _clear_bitmap(helper: HelperClient, params: dict[str, Any]) -> dict[str, Any]:
    cleared, stamp = helper.bitmap_clear(str(params["path"]), str(params["name"]), str(params["expect_stamp"]))
    return {"cleared": cleared, "stamp": stamp}


def _remove_bitmap(helper: HelperClient, params: dict[str, Any]) -> None:
    helper.bitmap_remove(str(params["path"]), str(params["name"]))


def _tpm_state(helper: HelperClient, params: dict[str, Any]) -> TpmState:
    """Not an error: a VM whose TPM cannot be read is replicated all the same, and called not fully protected."""
    try:
        return TpmState(digest=sha256(helper.read_tpm(str(params["vm_uuid"]))).hexdigest())
    except VaporError as error:
        return TpmState(digest=None, why=": ".join(filter(None, (error.what, error.why))), fix=error.fix)


_HOST_VERBS: dict[str, Callable[[HelperClient, dict[str, Any]], Any]] = {
    "image-info": _image_info,
    "add-bitmap": _add_bitmap,
    "clear-bitmap": _clear_bitmap,
    "remove-bitmap": _remove_bitmap,
    "tpm-state": _tpm_state,
}


def _parse(model: type[Any], params: dict[str, Any]) -> Any:
    try:
        return model.model_validate(params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"The request does not fit at {where!r}", why=first["msg"]) from error


def _direct(settings: SiteSettings) -> Callable[[str], Link]:
    from vapor_desktop.site.enrolments import Enrolments
    from vapor_desktop.site.ssh_options import peer_ssh_argv

    enrolments = Enrolments(settings)
    return lambda peer_site: CommandLink([*peer_ssh_argv(settings, enrolments.peer(peer_site)), "receive"])


def _look_at_peer(settings: SiteSettings) -> Callable[[str], object]:
    """ssh has one exit code for a changed host key, a refused key and a dead host: what it is, is looked at."""
    from vapor_desktop.site.enrolments import Enrolments
    from vapor_desktop.site.peers import check_peer

    enrolments = Enrolments(settings)
    return lambda peer_site: check_peer(settings, enrolments.peer(peer_site))


def _relayed(settings: SiteSettings) -> RelayDesk:
    from vapor_desktop.site.enrolments import Enrolments

    return RelayDesk(Enrolments(settings).peer)


def main(argv: Sequence[str] = ()) -> int:
    """Serve the engine on the standard streams; the exit code.

    ``--relay``: links to peers are asked of the engine, event ``relay``, instead of made by ssh.
    ``--receive-command WORD…`` (tests, bench) starts that instead of ssh, for whatever peer.
    """
    from vapor_desktop.site.identity import site_id

    parser = argparse.ArgumentParser(prog="vapor-site mover")
    parser.add_argument("--relay", action="store_true")
    parser.add_argument("--receive-command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(argv)
    settings = load_settings()
    desk = _relayed(settings) if asked.relay else None
    if asked.receive_command:
        pool = PeerPool(lambda _peer: CommandLink(asked.receive_command))
    elif desk is not None:
        pool = PeerPool(desk.connect)  # the console says why a relay did not begin
    else:
        pool = PeerPool(_direct(settings), _look_at_peer(settings))
    sys.setswitchinterval(0.0005)  # threads here hold the GIL for microseconds; waiting 5 ms for it costs throughput
    # Answers own the standard output: a stray print must not end up among them.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with answers:
        return Control(sys.stdin.buffer, answers, pool, settings, desk).run(site_id(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
