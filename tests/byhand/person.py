"""A person at a desktop: a real X server with a window manager and notifications; eyes, a mouse and a keyboard."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

EYES = Path(__file__).parent / "eyes.py"
SIZE = "1500x1000x24"
DUNST = """[global]
geometry = "460x5-20+40"
width = 460
origin = top-right
offset = 20x40
font = DejaVu Sans 10
mouse_left_click = do_action, close_current
idle_threshold = 0
"""


def tool(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed; this proof needs it"
    return found


class Person:
    """Everything started here ends with it. ``album``: where the pictures go."""

    def __init__(self, home: Path, album: Path) -> None:
        self.home, self.album = home, album
        self.started = ExitStack()
        self.pictures = 0

    def __enter__(self) -> Self:
        self.album.mkdir(parents=True, exist_ok=True)
        read, write = os.pipe()
        with os.fdopen(read) as pipe:
            xvfb = [tool("Xvfb"), "-displayfd", str(write), "-screen", "0", SIZE, "-nolisten", "tcp"]
            self._start(xvfb, pass_fds=(write,))
            os.close(write)
            number = pipe.readline().strip()
        self.env = {
            **os.environ,
            "DISPLAY": f":{number}",
            "QT_LINUX_ACCESSIBILITY_ALWAYS_ON": "1",
            "QT_QPA_PLATFORM": "xcb",
            "GTK_MODULES": "",
        }
        rc = self.home / "dunstrc"
        rc.write_text(DUNST)
        self._start([tool("openbox"), "--sm-disable"])
        self._start([tool("dunst"), "-conf", str(rc)])
        self._start(["/usr/libexec/at-spi-bus-launcher", "--launch-immediately"])
        self.eyes = self._start(
            ["/usr/bin/python3", str(EYES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.started.close()

    def _start(self, words: list[str], **options: Any) -> subprocess.Popen[Any]:
        options.setdefault("env", getattr(self, "env", os.environ))
        options.setdefault("stderr", (self.home / "programs.log").open("a"))
        process = subprocess.Popen(words, **options)

        def end() -> None:
            process.terminate()
            process.wait(20)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            if process.stderr is None and hasattr(options["stderr"], "close"):
                options["stderr"].close()

        self.started.callback(end)
        return process

    def open_console(self) -> None:
        """As the menu entry does."""
        self.console = self._start([sys.executable, "-m", "vapor_desktop.app"], cwd=str(self.home))
        self.see("push button|frame", "Vapor Desktop|Pair")

    # --- eyes -------------------------------------------------------------------------------------------
    def look(self, role: str, name: str) -> list[dict[str, Any]]:
        """What is on the screen. ``role``: alternatives with |; ``name``: a regular expression."""
        found: list[dict[str, Any]] = []
        for one in role.split("|"):
            self.eyes.stdin.write(json.dumps({"role": one, "name": name}) + "\n")
            self.eyes.stdin.flush()
            answer = json.loads(self.eyes.stdout.readline())
            if isinstance(answer, list):
                found += answer
        return found

    def see(self, role: str, name: str, timeout_s: float = 30, *, enabled: bool = False) -> dict[str, Any]:
        """Wait until it is there (and can be used)."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [f for f in self.look(role, name) if f["enabled"] or not enabled]
            return bool(found)

        self.until(there, f"{role} “{name}”", timeout_s)
        return found[0]

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert self.console.poll() is None, "the console ended"
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not seen within {timeout_s:g} s; see {self.picture('not-seen')}")
            time.sleep(0.2)  # eyes are no faster

    def picture(self, name: str) -> Path:
        """The whole screen."""
        self.pictures += 1
        path = self.album / f"{self.pictures:02}-{name}.png"
        subprocess.run([tool("import"), "-window", "root", str(path)], env=self.env, check=False, timeout=30)
        return path

    # --- hands ------------------------------------------------------------------------------------------
    def _do(self, *words: str) -> None:
        subprocess.run([tool("xdotool"), *words], env=self.env, check=True, timeout=60, capture_output=True)

    def click_at(self, x: int, y: int) -> None:
        self._do("mousemove", "--sync", str(x), str(y), "click", "1")

    def click(self, role: str, name: str, timeout_s: float = 30) -> None:
        """The middle of it, once it can be used."""
        x, y, width, height = self.see(role, name, timeout_s, enabled=True)["box"]
        self.click_at(x + width // 2, y + height // 2)

    def tick(self, cell: str, timeout_s: float = 30) -> None:
        """The box at the left end of a table's cell."""
        x, y, _width, height = self.see("table cell", cell, timeout_s)["box"]
        self.click_at(x + 12, y + height // 2)

    def key(self, *keys: str) -> None:
        self._do("key", "--delay", "40", *keys)

    def type(self, text: str) -> None:
        self._do("type", "--delay", "4", text)

    def fill(self, name: str, text: str, timeout_s: float = 30) -> None:
        """A field, by its name."""
        self.click("text|password text|spin button", f"^{re.escape(name)}", timeout_s)
        self.key("ctrl+a")
        self.type(text)
