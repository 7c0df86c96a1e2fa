"""The console's settings: each with its key in the window's memory, its default, and what it is found by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time
from typing import Any

from vapor_desktop.gui.layout_store import Memory
from vapor_desktop.gui.theme import SCHEME_WORDS

APPEARANCE, NOTIFICATIONS, TRAY = "Appearance", "Notifications", "Tray and start"
ENGINE, DEFAULTS, DATA = "Engine connection", "Defaults", "Data locations"
SECTIONS = (APPEARANCE, NOTIFICATIONS, TRAY, ENGINE, DEFAULTS, DATA)


@dataclass(frozen=True, slots=True)
class Setting:
    """``kind``: switch, choice, time (``HH:MM``), hours, rpo (seconds), autostart (a file, not the memory)."""

    key: str
    section: str
    title: str
    kind: str
    default: Any
    told: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    needs: str = ""  # greyed out while that switch is off

    @property
    def sought(self) -> str:
        """What the search looks at."""
        return f"{self.title} {self.section} {self.key} {self.told}"


_THEMES = tuple((scheme.value, text.replace("&", "")) for scheme, text in SCHEME_WORDS.items())
SETTINGS = (
    Setting("theme", APPEARANCE, "Colours", "choice", "system", "Charts and icons follow at once.", _THEMES),
    Setting("notifications", NOTIFICATIONS, "Show notifications", "switch", True),
    Setting(
        "notify_critical", NOTIFICATIONS, "Tell critical alerts", "switch", True,
        "RPO breached, replication failed, split brain.", needs="notifications",
    ),
    Setting(
        "notify_warning", NOTIFICATIONS, "Tell warnings", "switch", True,
        "A warning that becomes critical is told all the same. What was told is always told to be over.",
        needs="notifications",
    ),
    Setting(
        "quiet_hours", NOTIFICATIONS, "Quiet hours", "switch", False,
        "Warnings wait until they are over. Critical alerts are never held back.", needs="notifications",
    ),
    Setting("quiet_from", NOTIFICATIONS, "Quiet from", "time", "22:00", needs="quiet_hours"),
    Setting("quiet_to", NOTIFICATIONS, "Quiet until", "time", "07:00", needs="quiet_hours"),
    Setting(
        "remind_hours", NOTIFICATIONS, "Remind of what still holds after", "hours", 4,
        "Unless it was acknowledged. 0: never.", needs="notifications",
    ),
    Setting(
        "close_to_tray", TRAY, "Closing the window keeps the console in the tray", "switch", True,
        "Without a tray on the desktop, closing ends the console.",
    ),
    Setting(
        "autostart", TRAY, "Start with the desktop session", "autostart", False,
        "In the tray. Without a tray: minimised while it hosts the engine, else not at all.",
    ),
    Setting("restore_session", TRAY, "Open where it was left", "switch", True, "The page, and the VM shown."),
    Setting(
        "default_rpo_s", DEFAULTS, "RPO target of new protections", "rpo", 900,
        "What the protect wizard begins with; seconds.",
    ),
)  # fmt: skip
BY_KEY = {setting.key: setting for setting in SETTINGS}


class Preferences:
    """Values as they are meant; a damaged one counts as its default."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def get(self, key: str) -> Any:
        """The value, of its default's type."""
        default = BY_KEY[key].default
        value = self._memory.get(key, default)
        return value if type(value) is type(default) else default

    def put(self, key: str, value: Any) -> None:
        """Keep it, at once."""
        self._memory.put(key, value)

    def quiet(self, now: datetime) -> bool:
        """Whether warnings wait now; ``now`` with a time zone, quiet hours are local."""
        if not self.get("quiet_hours"):
            return False
        start, end = (clock(self.get(key), BY_KEY[key].default) for key in ("quiet_from", "quiet_to"))
        return within(now.astimezone().time(), start, end)


def clock(text: str, default: str) -> time:
    """``HH:MM``; the default for what is none."""
    try:
        return time.fromisoformat(text)
    except ValueError:
        return time.fromisoformat(default)


def within(now: time, start: time, end: time) -> bool:
    """Between start and end, over midnight too; never when they are the same."""
    return start <= now < end if start <= end else now >= start or now < end
