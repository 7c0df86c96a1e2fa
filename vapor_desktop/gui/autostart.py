"""Starting with the desktop session: a file in the XDG autostart folder."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from vapor_desktop.model.errors import InvalidRequest

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+./:,@")


class Autostart:
    """``desktop_id``: the desktop file's name without its ending."""

    def __init__(self, desktop_id: str, title: str) -> None:
        self._id, self._title = desktop_id, title

    @property
    def path(self) -> Path:
        """The file, there or not."""
        config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        return Path(config) / "autostart" / f"{self._id}.desktop"

    def on(self) -> bool:
        """Whether the session starts it: the file is there, and no desktop's own switch has turned it off."""
        try:
            lines = [line.strip() for line in self.path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError):
            return False
        off = {"Hidden=true", "X-GNOME-Autostart-enabled=false"}
        return not off & set(lines)

    def turn(self, on: bool) -> None:
        """Write or remove it. Raises InvalidRequest saying why it cannot be."""
        try:
            if on:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(self._text(), encoding="utf-8")
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise InvalidRequest(
                "Starting with the session cannot be changed", why=f"{self.path}: {error.strerror}"
            ) from error

    def _text(self) -> str:
        command = " ".join(quoted(part) for part in [*program(), "--tray"])
        return (
            "[Desktop Entry]\nType=Application\n"
            f"Name={self._title}\nComment=Watches the recovery points of your virtual machines, in the tray\n"
            f"Exec={command}\nIcon={self._id}\nTerminal=false\nX-GNOME-Autostart-enabled=true\n"
        )


def program() -> list[str]:
    """What starts this console: the installed command, else this very interpreter."""
    beside = Path(sys.executable).with_name("vapor-desktop")
    installed = shutil.which("vapor-desktop")
    if installed and Path(installed).resolve() == beside.resolve():
        return ["vapor-desktop"]
    return [str(beside)] if beside.exists() else [installed or "vapor-desktop"]


def quoted(part: str) -> str:
    """As the desktop entry specification wants an argument in Exec."""
    if part and set(part) <= _PLAIN:
        return part.replace("%", "%%")
    for letter in ("\\", '"', "`", "$"):
        part = part.replace(letter, "\\" + letter)
    return '"' + part.replace("\\", "\\\\").replace("%", "%%") + '"'
