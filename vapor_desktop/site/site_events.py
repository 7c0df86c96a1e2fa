"""What the site did by itself: appended to a file, served to consoles, told to the journal, webhook and mail."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.wire import GuardianEvent
from vapor_desktop.site.alarm_targets import Notice, mail, post
from vapor_desktop.site.deliveries import Lane
from vapor_desktop.site.settings import AlarmTargets
from vapor_desktop.site.statefile import append_json, make_dir, read_json_lines, write_atomic

_log = logging.getLogger("vapor.guardian")

KEEP = 5000


class EventLog:
    """The last ``KEEP`` events, durable."""

    def __init__(self, path: Path, alarm: AlarmTargets, site_name: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        make_dir(path.parent)
        self._lanes = _lanes(alarm, site_name, path.parent)
        self._events = [GuardianEvent.model_validate(item) for item in read_json_lines(path)]
        self._bytes_read = self._size()

    def add(self, event: GuardianEvent) -> None:
        """Record it, then tell everybody; a target that does not answer holds nothing up and is tried again."""
        with self._lock:
            self._read_others()
            append_json(self._path, event.model_dump(mode="json"))
            self._events.append(event)
            self._bytes_read = self._size()
            if len(self._events) > 2 * KEEP:
                self._events = self._events[-KEEP:]
                lines = [item.model_dump_json().encode() + b"\n" for item in self._events]
                write_atomic(self._path, b"".join(lines))
                self._bytes_read = self._size()
        self._tell(event)

    def since(self, at: datetime | None) -> list[GuardianEvent]:
        """Events at or after that moment (an aware time), oldest first."""
        with self._lock:
            self._read_others()
            return [event for event in self._events if at is None or event.at >= at]

    def catch_up(self) -> None:
        """What an admin's verb in another process added (an override) is told by us, too."""
        with self._lock:
            self._read_others()

    def _read_others(self) -> None:
        if self._size() == self._bytes_read:
            return
        known, self._bytes_read = len(self._events), self._size()
        self._events = [GuardianEvent.model_validate(item) for item in read_json_lines(self._path)]
        for event in self._events[known:]:
            self._tell(event)

    def _tell(self, event: GuardianEvent) -> None:
        _log.warning("%s: VM %s: %s", event.what, event.vm_uuid, event.why)
        for lane in self._lanes:
            lane.put(Notice(event.at, event.vm_uuid, event.what, event.why))

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def close(self) -> None:
        """Wait until what was added has been tried once; what was not delivered stays on file."""
        for lane in self._lanes:
            lane.close()


def _lanes(alarm: AlarmTargets, site_name: str, state: Path) -> list[Lane]:
    """One per target that the settings name."""

    def hook(notice: Notice, _recipients: tuple[str, ...]) -> dict[str, VaporError]:
        post(alarm, site_name, notice)
        return {}

    def letter(notice: Notice, recipients: tuple[str, ...]) -> dict[str, VaporError]:
        return {**mail(alarm, site_name, notice, recipients)}

    lanes = []
    if alarm.webhook:
        lanes.append(Lane("webhook", state / "alarm-webhook.json", ("webhook",), hook))
    if alarm.mail_to:
        lanes.append(Lane("mail", state / "alarm-mail.json", alarm.mail_to, letter))
    return lanes


def event(vm_uuid: str, what: str, why: str, cause: str = "") -> GuardianEvent:
    """An event of this moment."""
    found = {"at": datetime.now(UTC), "vm_uuid": vm_uuid, "what": what, "why": why, "cause": cause}
    return GuardianEvent.model_validate(found)
