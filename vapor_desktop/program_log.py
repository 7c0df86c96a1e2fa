"""Where the programs on a desktop write their log: standard error, and a file that a person can send."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO, cast

import platformdirs

APP = "vapor-desktop"
CONSOLE, ENGINE = "console.log", "engine.log"
MAX_BYTES = 1024 * 1024
KEPT = 2  # older files beside it
_STRUCTURED = "structured"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def log_file(name: str = CONSOLE) -> Path:
    """Where it lies (XDG state)."""
    return Path(platformdirs.user_log_dir(APP)) / name


def open_log(name: str) -> TextIO:
    """Standard error and the file from now on; returns what structured logging writes to.

    A file that cannot be written is said on standard error and stops nothing.
    """
    level = logging.getLevelNamesMapping().get(os.environ.get("VAPOR_LOG", "INFO").upper(), logging.INFO)
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    handlers[0].setLevel(max(level, logging.WARNING))  # standard error: as it is without any handler
    handlers[0].addFilter(lambda record: record.name != _STRUCTURED)
    path = log_file(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        file = RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=KEPT, encoding="utf-8", delay=True)
    except OSError as error:
        print(f"{APP}: no log file: {path}: {error.strerror}", file=sys.stderr)
    else:
        file.setFormatter(_Lines())
        handlers.append(file)
    for handler in handlers:
        logging.getLogger().addHandler(handler)
    logging.getLogger("vapor_desktop").setLevel(level)
    logging.getLogger(_STRUCTURED).setLevel(logging.DEBUG)
    return cast(TextIO, _Both(sys.stderr))


class _Lines(logging.Formatter):
    """Structured lines are written already; others get a time and a level."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s [%(levelname)s] %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """A line of the file."""
        return record.getMessage() if record.name == _STRUCTURED else super().format(record)


class _Both(io.TextIOBase):
    """What is written goes to a stream, and line by line to the log's handlers."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._log = stream, logging.getLogger(_STRUCTURED)

    def write(self, text: str) -> int:
        """One call a line, as structlog prints; the line's end may come apart."""
        if text.strip():
            self._log.info("%s", _COLOURS.sub("", text.rstrip("\n")))
        return self._stream.write(text)

    def flush(self) -> None:
        """Of the stream; the log's handlers flush by themselves."""
        self._stream.flush()
