"""A list of checks, each reported when it begins and when it ends. A failed one does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.view import Check

OnCheck = Callable[[Check], None]
Look = Callable[[], Check]


def run_checks(looks: Iterable[tuple[str, str, Look]], on_check: OnCheck) -> list[Check]:
    """looks: (key, title, look). An error of ``model.errors`` is a failed check with its own words."""
    done = []
    for key, title, look in looks:
        on_check(Check(key, title, "running"))
        try:
            result = look()
        except VaporError as error:
            text = f"{error.what}: {error.why}" if error.why else error.what
            result = Check(key, title, "failed", text, error.fix, error.code)
        done.append(result)
        on_check(result)
    return done
