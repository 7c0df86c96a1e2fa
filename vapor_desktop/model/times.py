"""Times of day as people write them; always UTC."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import time

from vapor_desktop.model.errors import InvalidRequest


def times_of_day(text: str) -> tuple[time, ...]:
    """ "06:00, 18:30" -> the times, sorted. Raises InvalidRequest naming the word that is none."""
    found = []
    for word in text.replace(",", " ").replace(";", " ").split():
        try:
            at = time.fromisoformat(word)
        except ValueError:
            raise InvalidRequest(f"“{word}” is not a time of day", fix="Write 06:00, 18:30") from None
        if at.tzinfo is not None:
            raise InvalidRequest(f"“{word}” carries a zone; times of day are UTC", fix="Write 06:00, 18:30")
        found.append(at)
    return tuple(sorted(set(found)))


def times_text(times: Iterable[time]) -> str:
    """What ``times_of_day`` reads."""
    return ", ".join(t.isoformat("auto" if t.second else "minutes") for t in times)
