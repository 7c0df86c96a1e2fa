"""What the site did by itself: appended to a file, served to consoles, told to the journal, webhook and mail."""

from __future__ import annotations

import json
import logging
import smtplib
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

from vapor_desktop.model.wire import GuardianEvent
from vapor_desktop.site.settings import AlarmTargets
from vapor_desktop.site.statefile import append_json, make_dir, read_json_lines, write_atomic

_log = logging.getLogger("vapor.guardian")

KEEP = 5000
TARGET_TIMEOUT_S = 10.0
LOUD = ("rpo-alarm", "rpo-recovered", "job-ended", "thawed", "resumed")


class EventLog:
    """The last ``KEEP`` events, durable."""

    def __init__(self, path: Path, alarm: AlarmTargets, site_name: str) -> None:
        self._path = path
        self._alarm = alarm
        self._site_name = site_name
        self._lock = threading.Lock()
        self._sender = ThreadPoolExecutor(1, "alarm")
        make_dir(path.parent)
        self._events = [GuardianEvent.model_validate(item) for item in read_json_lines(path)]

    def add(self, event: GuardianEvent) -> None:
        """Record it, then tell everybody; a target that does not answer is logged and holds nothing up."""
        with self._lock:
            append_json(self._path, event.model_dump(mode="json"))
            self._events.append(event)
            if len(self._events) > 2 * KEEP:
                self._events = self._events[-KEEP:]
                lines = [item.model_dump_json().encode() + b"\n" for item in self._events]
                write_atomic(self._path, b"".join(lines))
        _log.warning("%s: VM %s: %s", event.what, event.vm_uuid, event.why)
        if self._alarm.webhook:
            self._sender.submit(self._webhook, event)
        if self._alarm.mail_to:
            self._sender.submit(self._mail, event)

    def since(self, at: datetime | None) -> list[GuardianEvent]:
        """Events at or after that moment (an aware time), oldest first."""
        with self._lock:
            return [event for event in self._events if at is None or event.at >= at]

    def close(self) -> None:
        """Wait until what was submitted has been tried."""
        self._sender.shutdown()

    def _webhook(self, event: GuardianEvent) -> None:
        body = json.dumps({"site": self._site_name, **event.model_dump(mode="json")}).encode()
        url = str(self._alarm.webhook)
        if not url.startswith(("http://", "https://")):
            _log.error("alarm webhook %r is not an http(s) URL", url)
            return
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - checked above
        try:
            with urllib.request.urlopen(request, timeout=TARGET_TIMEOUT_S) as answer:  # noqa: S310
                answer.read(1)
        except OSError as error:
            _log.error("the alarm webhook did not take %s: %s", event.what, error)

    def _mail(self, event: GuardianEvent) -> None:
        message = EmailMessage()
        message["Subject"] = f"[vapor {self._site_name}] {event.what}: VM {event.vm_uuid}"
        message["From"] = self._alarm.mail_from
        message["To"] = ", ".join(self._alarm.mail_to)
        message.set_content(f"{event.at.isoformat()}\n{event.what}\n{event.why}\n")
        try:
            with smtplib.SMTP(self._alarm.smtp_host, self._alarm.smtp_port, timeout=TARGET_TIMEOUT_S) as server:
                server.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            _log.error("the alarm mail about %s was not sent: %s", event.what, error)


def event(vm_uuid: str, what: str, why: str) -> GuardianEvent:
    """An event of this moment."""
    return GuardianEvent.model_validate({"at": datetime.now(UTC), "vm_uuid": vm_uuid, "what": what, "why": why})
