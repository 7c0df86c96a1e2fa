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
from urllib.parse import urlsplit

import platformdirs

from vapor_desktop import __version__
from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.engine.ports import Repository, Secrets
from vapor_desktop.engine.runtime import Engine, new_identity
from vapor_desktop.model.errors import InvalidRequest, VaporError
from vapor_desktop.program_log import CONSOLE, ENGINE, open_log

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

    def close(self) -> None:
        """Let go of the sites and of the database, once the engine's loop has ended."""
        self.engine.gateway.close()
        self.engine.repository.close()


def database_url() -> str:
    """``$VAPOR_DATABASE_URL``, the systemd credential ``database-url``, or SQLite in the user's data directory (XDG).

    Raises InvalidRequest for a password in the environment, where every process of the user can read it.
    """
    url = os.environ.get("VAPOR_DATABASE_URL")
    if url:
        if urlsplit(url).password is not None:
            raise InvalidRequest(
                "The database's URL has a password in it",
                why="the environment and the argument list can be read by others",
                fix="Put the password into ~/.pgpass, or the whole URL into the credential database-url",
            )
        return url
    if _is_system_unit() or os.environ.get("VAPOR_CREDENTIALS"):
        url = _secrets().get("database-url")
        if url is None:
            raise InvalidRequest(
                "An engine with systemd credentials needs a PostgreSQL database",
                why="neither VAPOR_DATABASE_URL nor the credential database-url names one",
                fix="Seal it as packaging/README.md shows",
            )
        return url
    folder = Path(platformdirs.user_data_dir(APP_NAME))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return f"sqlite:///{folder / 'vapor.db'}"


def _is_system_unit() -> bool:
    """Did systemd give credentials? Then there is no keyring, and no user's own data directory."""
    return bool(os.environ.get("CREDENTIALS_DIRECTORY"))


def _secrets() -> Secrets:
    """systemd's credentials; the folder in which they lie sealed, while they are being made; or the keyring."""
    from vapor_desktop.store.sealed import SealedSecrets
    from vapor_desktop.store.secrets import FileSecrets, KeyringSecrets

    if _is_system_unit():
        return FileSecrets()
    folder = os.environ.get("VAPOR_CREDENTIALS")
    return SealedSecrets(Path(folder)) if folder else KeyringSecrets()


def build(kind: str, *, demo: bool = False) -> Program:
    """Open the database and wire the adapters. Raises VaporError."""
    from vapor_desktop.hypervisor.connection import LibvirtHypervisor
    from vapor_desktop.hypervisor.link import client_version
    from vapor_desktop.store.durable import DbosOperations
    from vapor_desktop.store.repository import SqlRepository
    from vapor_desktop.transport.gateway import Gateway
    from vapor_desktop.transport.pairing import SitePairing

    clock = SystemClock()
    url = database_url()
    repository = SqlRepository(url)
    try:
        secrets = _secrets()
        console_id = _console_id(repository)
    except VaporError:
        repository.close()  # nobody will hold it to close it
        raise
    gateway = Gateway(repository, secrets, LibvirtHypervisor)
    identity = new_identity(kind, clock)
    engine = Engine(repository, gateway, clock, identity, DbosOperations(url))
    pairing = SitePairing(secrets, console_id, identity.name)
    backend = EngineBackend(engine, pairing, demo=demo)
    backend.know(lambda: {"libvirt client": client_version(), "Database": repository.describe()})
    return Program(engine, backend)


def _console_id(repository: Repository) -> str | None:
    """This console's UUID, made on first use: what sites know it by.

    None where several consoles and engines share the database: each has a key, and by it a name, of its own.
    """
    if repository.shared():
        return None
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
        program.close()


def engine_main() -> int:
    """``vapor-engine``: the engine without a window, until SIGTERM or SIGINT."""
    log_to_stderr(None if _is_system_unit() else ENGINE)
    try:
        program = build("service")
        if _is_system_unit() and not program.engine.repository.shared():
            raise InvalidRequest("A system engine needs PostgreSQL", fix="See packaging/README.md")
    except VaporError as error:
        print(f"vapor-engine: {error}", file=sys.stderr)
        return 1

    def leave(_signum: int, _frame: object) -> None:
        program.engine.stop()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    program.engine.run()
    program.close()
    return 0


def desktop_main() -> int:
    """``vapor-desktop``: the console, hosting the engine in a thread unless another engine lives."""
    args = sys.argv[1:]
    if "--engine" in args:
        return engine_main()
    if "--version" in args:
        print(f"vapor-desktop {__version__}")
        return 0
    log_to_stderr(CONSOLE)
    demo = "--demo" in args
    from vapor_desktop.gui.application import handed_over, run

    if handed_over(args, demo=demo):
        return 0
    try:
        program = build("console", demo=demo)
    except VaporError as error:
        print(f"vapor-desktop: {error}", file=sys.stderr)
        return 1
    code = run(program.backend, program.engine.run, program.engine.stop, demo=demo, argv=args)
    # Not the sites' connections: a call that hangs, left behind in its daemon thread, may hold them.
    program.engine.repository.close()
    return code


def log_to_stderr(file: str | None = None) -> None:
    """Standard output is for results. ``$VAPOR_LOG``: DEBUG, INFO, … ``file``: also into the log of that name."""
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
        logger_factory=structlog.PrintLoggerFactory(file=open_log(file) if file else sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(desktop_main())
