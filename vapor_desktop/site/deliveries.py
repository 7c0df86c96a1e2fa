"""Alarms on their way to one target: never in anybody's way, kept over a restart, tried again until they are there.

A *lane* is one target (mail, webhook) with its own thread, so one that hangs holds up neither the alarm nor the
other. What the target did not take waits in a small file; each recipient that has it is crossed out, so it comes
once. A failure is logged once until it is mended or its kind changes; ``failing`` in the file is for ``doctor``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from vapor_desktop.model.errors import VaporError
from vapor_desktop.site.alarm_targets import Notice
from vapor_desktop.site.statefile import make_dir, read_json, write_json

_log = logging.getLogger("vapor.alarm")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0
GIVE_UP = timedelta(days=1)
KEEP = 200  # more than that tells nobody anything; the journal has them all
CLOSE_S = 30.0

Deliver = Callable[[Notice, tuple[str, ...]], Mapping[str, VaporError]]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A notice and who has not got it."""

    notice: Notice
    left: tuple[str, ...]
    tried: int = 0


@dataclass(frozen=True, slots=True)
class Failing:
    """Why a lane does not deliver, since when (ISO, aware)."""

    since: str
    what: str
    why: str
    fix: str


def pause_s(failures: int) -> float:
    """How long to wait after the n-th failure in a row."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 20)))


class Lane:
    """``deliver(notice, recipients)`` returns whom it could not reach, and raises VaporError when nobody was."""

    def __init__(
        self,
        name: str,
        state: Path,
        recipients: tuple[str, ...],
        deliver: Deliver,
        pause_after: Callable[[int], float] = pause_s,
    ) -> None:
        self._name = name
        self._state = state
        self._recipients = recipients
        self._deliver = deliver
        self._pause_after = pause_after
        self._changed = threading.Condition()
        self._failures = 0
        self._stop = False
        make_dir(state.parent)
        self._waiting, self._failing = load(state)
        # Whom the settings no longer name is not waited for.
        kept = [Waiting(w.notice, tuple(r for r in w.left if r in recipients), w.tried) for w in self._waiting]
        self._waiting = [w for w in kept if w.left]
        self._thread: threading.Thread | None = None
        if self._waiting:
            self._start()

    def put(self, notice: Notice) -> None:
        """Send it soon; returns at once. A disk that is full costs only the restart's memory of it."""
        with self._changed:
            self._waiting = [*self._waiting, Waiting(notice, self._recipients)][-KEEP:]
            self._save()
            if self._thread is None:
                self._start()
            self._failures = 0  # worth a try now, whatever the back-off
            self._changed.notify()

    def close(self) -> None:
        """Try once what was never tried, then end; the rest is on file."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    @property
    def waiting(self) -> list[Waiting]:
        """A copy."""
        with self._changed:
            return list(self._waiting)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"alarm-{self._name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._stop and not self._waiting:
                    self._changed.wait()
                elif not self._stop and self._failures:
                    self._changed.wait(self._pause_after(self._failures))
                last = self._stop
                batch = [w for w in self._waiting if not last or not w.tried]
            self._round(batch)
            if last:
                return

    def _round(self, batch: list[Waiting]) -> None:
        """Try each, oldest first; when the target itself fails the rest need not be tried."""
        trouble: VaporError | None = None
        for item in batch:
            if datetime.now(UTC) - item.notice.at > GIVE_UP and item.tried:
                _log.error("alarm %s: given up after a day: %s", self._name, item.notice.why)
                self._replace(item, ())
                continue
            try:
                refused = self._deliver(item.notice, item.left)
            except VaporError as error:
                trouble = error
                self._replace(item, item.left)
                break
            self._replace(item, tuple(r for r in item.left if r in refused))
            trouble = trouble or next(iter(refused.values()), None)
        if batch:
            self._tell(trouble)

    def _replace(self, item: Waiting, left: tuple[str, ...]) -> None:
        new = [Waiting(item.notice, left, item.tried + 1)] if left else []
        with self._changed:
            # By identity: it may have fallen out of KEEP meanwhile, and two notices may say the same.
            self._waiting = [n for w in self._waiting for n in (new if w is item else [w])]
            self._save()

    def _tell(self, trouble: VaporError | None) -> None:
        with self._changed:
            self._failures = self._failures + 1 if trouble else 0
            before = self._failing
            if trouble is None:
                self._failing = None
            elif before is None or before.what != trouble.what:
                since = before.since if before else datetime.now(UTC).isoformat(timespec="seconds")
                self._failing = Failing(since, trouble.what, trouble.why, trouble.fix)
            if self._failing == before:
                return
            self._save()
        if trouble is not None:
            _log.error("alarm %s: %s. It is tried again", self._name, trouble)
        else:
            _log.warning("alarm %s: delivered again", self._name)

    def _save(self) -> None:
        value = {
            "failing": None
            if self._failing is None
            else {
                "since": self._failing.since,
                "what": self._failing.what,
                "why": self._failing.why,
                "fix": self._failing.fix,
            },
            "waiting": [
                {"notice": w.notice.to_json(), "left": list(w.left), "tried": w.tried} for w in self._waiting
            ],
        }
        try:
            write_json(self._state, value)
        except OSError as error:
            _log.error("alarm %s: what waits could not be written to %s: %s", self._name, self._state, error)


def load(state: Path) -> tuple[list[Waiting], Failing | None]:
    """What a lane's file says; nothing when it is missing or damaged (logged): alarms go on without it."""
    try:
        value: Any = read_json(state) or {"failing": None, "waiting": []}
        waiting = [
            Waiting(Notice.from_json(item["notice"]), tuple(item["left"]), int(item["tried"]))
            for item in value["waiting"]
        ]
        return waiting, Failing(**value["failing"]) if value["failing"] else None
    except (VaporError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s is damaged, its alarms are not sent again: %s", state, error)
        return [], None
