"""The diagnostics bundle: what a person who helps must know, and nothing secret. Told before it is written."""

from __future__ import annotations

import json
import os
import platform
import sys
import zipfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from vapor_desktop.engine.backend import Backend
from vapor_desktop.model import redaction
from vapor_desktop.model.errors import InvalidRequest, VaporError

LOG_TAIL_BYTES = 512 * 1024
EVENTS = 500
CONTENTS = (
    ("versions.txt", "versions of this program, Python, libvirt, the database and its schema, and all libraries"),
    ("state.json", "sites with their addresses and health, VMs with names, recovery points and alerts, as shown now"),
    ("operations.json", "the last operations, step by step, with the reasons that were typed"),
    ("events.json", f"the last {EVENTS} events of the history"),
    ("settings.json", "this console's settings"),
    ("environment.json", "environment variables that steer the program or the desktop"),
    ("log/", "the ends of the log files"),
)
LEFT_OUT = (
    "Not in it: tokens, keys, passwords, disk data, the guests' screens. What looks like a secret is removed from "
    "every file. Names and addresses of hosts and VMs are in it."
)
_ENVIRONMENT = (
    "VAPOR_",
    "XDG_",
    "QT_",
    "LANG",
    "LC_",
    "DESKTOP_SESSION",
    "WAYLAND_DISPLAY",
    "DISPLAY",
    "INVOCATION_ID",
)


def announcement() -> str:
    """What it will contain, for the person who is about to write it."""
    return "\n".join([*(f"{name}: {told}" for name, told in CONTENTS), "", LEFT_OUT])


def collect(
    backend: Backend | None, now: datetime, settings: Mapping[str, Any], logs: Mapping[str, Path], trouble: str = ""
) -> dict[str, str]:
    """File name -> text, all of it redacted. What cannot be read is said in its place; nothing is raised.

    ``backend`` None: the program could not be opened, ``trouble`` says why; the rest is told all the same.
    """
    files = {"README.txt": f"Diagnostics of Vapor Desktop, {now.isoformat()}\n\n{announcement()}\n"}
    asked: dict[str, Callable[[Backend], Any]] = {
        "state.json": lambda b: b.snapshot(),
        "operations.json": lambda b: b.operations(limit=50),
        "events.json": lambda b: b.events(limit=EVENTS),
    }
    for name, ask in asked.items():
        files[name] = _json(_asked(backend, ask, trouble))
    files["versions.txt"] = _versions(backend, trouble)
    files["settings.json"] = _json(settings)
    files["environment.json"] = _json({k: v for k, v in sorted(os.environ.items()) if k.startswith(_ENVIRONMENT)})
    for name, path in logs.items():
        files[f"log/{name}"] = _tail(path)
    # JSON was cleaned value by value; as a text its quotes would be torn.
    return {name: text if name.endswith(".json") else redaction.text(text) for name, text in files.items()}


def write(path: Path, files: Mapping[str, str]) -> None:
    """The zip, whole or not at all, readable by its owner only. Raises InvalidRequest."""
    aside = path.with_name(f".{path.name}.new")
    try:
        raw = os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
        with raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as made:
            for name, text in sorted(files.items()):
                made.writestr(name, text)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise InvalidRequest(
            "The diagnostics cannot be written", why=f"{path}: {error.strerror}", fix="Choose another place"
        ) from error


def _asked(backend: Backend | None, ask: Callable[[Backend], Any], trouble: str) -> Any:
    if backend is None:
        return {"unknown": trouble}
    try:
        return ask(backend)
    except VaporError as error:
        return {"unknown": str(error), "code": error.code}


def _versions(backend: Backend | None, trouble: str) -> str:
    lines = [f"Python: {sys.version}", f"System: {platform.platform()}"]
    found = _asked(backend, lambda b: b.about(), trouble)
    if isinstance(found, dict):
        return "\n".join([*lines, f"The rest is unknown: {found['unknown']}"])
    return "\n".join([*found.lines(), *lines, "", *(f"{c.name} {c.version} ({c.licence})" for c in found.components)])


def _json(value: Any) -> str:
    return json.dumps(redaction.plain(value), indent=1, ensure_ascii=False, sort_keys=False)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            begin = max(0, file.tell() - LOG_TAIL_BYTES)
            file.seek(begin)
            found = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"(cannot be read: {error.strerror})"
    # A first line that was cut through may hold the second half of a secret that no rule would know.
    return found.partition("\n")[2] if begin else found
