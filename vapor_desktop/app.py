"""The composition root: the only place that knows which adapter is used. Entry points of the programs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import platformdirs

from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.engine.ports import Repository
from vapor_desktop.engine.runtime import Engine, new_identity
from vapor_desktop.model.errors import VaporError

APP_NAME = "vapor-desktop"


class SystemClock:
    """The real time."""

    def now(self) -> datetime:
        """Aware, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds of a clock that never jumps."""
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Program:
    """Everything wired together."""

    engine: Engine
    backend: EngineBackend


def database_url() -> str:
    """``$VAPOR_DATABASE_URL``, else SQLite below the user's data directory (XDG)."""
    url = os.environ.get("VAPOR_DATABASE_URL")
    if url:
        return url
    folder = Path(platformdirs.user_data_dir(APP_NAME))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return f"sqlite:///{folder / 'vapor.db'}"


def build(kind: str, *, demo: bool = False) -> Program:
    """Open the database and wire the adapters. Raises VaporError."""
    from vapor_desktop.hypervisor.connection import LibvirtHypervisor
    from vapor_desktop.store.durable import DbosOperations
    from vapor_desktop.store.repository import SqlRepository
    from vapor_desktop.store.secrets import FileSecrets, KeyringSecrets
    from vapor_desktop.transport.gateway import Gateway
    from vapor_desktop.transport.pairing import SitePairing

    clock = SystemClock()
    repository = SqlRepository(database_url())
    secrets = FileSecrets() if os.environ.get("CREDENTIALS_DIRECTORY") else KeyringSecrets()
    gateway = Gateway(repository, secrets, LibvirtHypervisor)
    identity = new_identity(kind, clock)
    engine = Engine(repository, gateway, clock, identity, DbosOperations(database_url()))
    pairing = SitePairing(secrets, _console_id(repository), identity.name)
    return Program(engine, EngineBackend(engine, pairing, demo=demo))


def _console_id(repository: Repository) -> str:
    """This console's UUID, made on first use: what sites know it by."""
    known = repository.setting("console-id")
    if known is None:
        known = str(uuid.uuid4())
        repository.set_setting("console-id", known)
    return known


@contextmanager
def running_engine(kind: str, *, demo: bool = False) -> Iterator[Program]:
    """A program whose engine runs in a thread of its own for the length of the block."""
    program = build(kind, demo=demo)
    thread = threading.Thread(target=program.engine.run, name="engine", daemon=True)
    thread.start()
    try:
        yield program
    finally:
        program.engine.stop()
        thread.join(timeout=30)
        program.engine.gateway.close()


def engine_main() -> int:
    """``vapor-engine``: the engine without a window, until SIGTERM or SIGINT."""
    _log_to_stderr()
    try:
        program = build("service")
    except VaporError as error:
        print(f"vapor-engine: {error}", file=sys.stderr)
        return 1

    def leave(_signum: int, _frame: object) -> None:
        program.engine.stop()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    program.engine.run()
    program.engine.gateway.close()
    return 0


def desktop_main() -> int:
    """``vapor-desktop``: the console, hosting the engine in a thread unless another engine lives."""
    args = sys.argv[1:]
    if "--engine" in args:
        return engine_main()
    _log_to_stderr()
    demo = "--demo" in args
    try:
        program = build("console", demo=demo)
    except VaporError as error:
        print(f"vapor-desktop: {error}", file=sys.stderr)
        return 1
    from vapor_desktop.gui.application import run

    return run(program.backend, program.engine.run, program.engine.stop, demo=demo, argv=args)


def _log_to_stderr() -> None:
    import logging

    import structlog

    level = logging.getLevelNamesMapping().get(os.environ.get("VAPOR_LOG", "INFO").upper(), logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(desktop_main())
