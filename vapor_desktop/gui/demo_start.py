"""The demo from the window: what it needs, told first; then the checkout's own ``./vapor demo``."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import vapor_desktop

NEEDS = (
    "Two real KVM hosts on this machine, with real guests, replicated every 10 s. Needs x86-64, root (it asks), some "
    "3 GiB of memory and disk, and Debian's or Ubuntu's packages, which it names and asks to install. "
    "It has a database and a keyring of its own and reaches no other host; all is gone when it ends."
)
TERMINALS = ("x-terminal-emulator", "gnome-terminal", "konsole", "xfce4-terminal", "xterm")


@dataclass(frozen=True, slots=True)
class Offer:
    """``command``: what starts it, () when this machine cannot; ``how``: what a person can do by hand."""

    command: tuple[str, ...]
    how: str
    folder: Path | None = None


def offer(checkout: Path | None, lab: str | None, terminal: str | None, *, root: bool) -> Offer:
    """What this installation can do about a demo. Pure."""
    if checkout is not None:
        by_hand = f"cd {shlex.quote(str(checkout))} && ./vapor demo"
        start: tuple[str, ...] = (str(checkout / "vapor"), "demo")
    elif lab is not None:
        by_hand, start = f"{'' if root else 'sudo '}{lab} demo", ((lab, "demo") if root else ("sudo", lab, "demo"))
    else:
        how = (
            "This installation is without the lab. Install the package vapor-lab, or run ./vapor demo in a checkout."
        )
        return Offer((), how)
    if terminal is not None:  # packages are asked for there, and root's password
        word = "--" if Path(terminal).name == "gnome-terminal" else "-e"
        return Offer((terminal, word, *start), by_hand, checkout)
    if root:
        return Offer((*start, "-y") if checkout is not None else start, by_hand, checkout)
    return Offer((), by_hand, checkout)


def found() -> Offer:
    """As it is here."""
    terminal = next((path for name in TERMINALS if (path := shutil.which(name))), None)
    beside = Path(sys.executable).with_name("vapor-lab")
    lab = shutil.which("vapor-lab") or (str(beside) if beside.exists() else None)
    return offer(checkout(), lab, terminal, root=os.geteuid() == 0)


def checkout() -> Path | None:
    """The checkout that this program runs from, if it does."""
    folder = Path(vapor_desktop.__file__).resolve().parent.parent
    script = folder / "vapor"
    return folder if os.access(script, os.X_OK) and (folder / "pyproject.toml").is_file() else None
