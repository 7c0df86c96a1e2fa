"""Opening the database: SQLite in WAL, or PostgreSQL by URL; migrated before anybody sees it."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from vapor_desktop.model.errors import Conflict, DatabaseTrouble, NotFound, VaporError

BUSY_TIMEOUT_S = 10
_MIGRATIONS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x7661706F72  # "vapor"
_FOREIGN_KEY = (sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, "23503")


class Database:
    """An open, migrated database. ``read()`` and ``write()`` are one short transaction each.

    Safe to use from several threads and processes. Raises DatabaseTrouble when it does not open, is newer
    than this program, or stays busy; Conflict and NotFound for broken constraints.
    """

    def __init__(self, url: str) -> None:
        self._url = _checked_url(url)
        try:
            self.engine = create_engine(self._url, **_engine_options(self._url))
        except (NoSuchModuleError, ImportError) as error:
            raise DatabaseTrouble("No driver for that kind of database", why=str(error)) from error
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        if self.is_sqlite:
            _prepare_sqlite(self.engine)
        self._writing = self.engine.execution_options(vapor_write=True)
        try:
            with translated():
                self._migrate()
        except VaporError:
            self.engine.dispose()  # nobody will hold this object to close it
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one moment."""
        with translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write; committed at the end, rolled back on any error."""
        with translated(), self._writing.begin() as connection:
            yield connection

    def upsert(
        self, connection: Connection, table: Table, rows: Iterable[Mapping[str, Any]], keys: Iterable[str]
    ) -> None:
        """Insert ``rows``, or write them over the rows of the same ``keys``."""
        listed = [dict(row) for row in rows]
        if not listed:
            return
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        statement = insert(table)
        keys = list(keys)
        changed = {name: statement.excluded[name] for name in listed[0] if name not in keys}
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), listed)

    def add_missing(self, connection: Connection, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
        """Insert those of ``rows`` whose key is not there yet."""
        listed = [dict(row) for row in rows]
        if listed:
            insert = sqlite.insert if self.is_sqlite else postgresql.insert
            connection.execute(insert(table).on_conflict_do_nothing(), listed)

    def describe(self) -> str:
        """``SQLite 3.40.1, schema 0012``."""
        with self.read() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
            version = ".".join(map(str, connection.dialect.server_version_info or ()))
        return f"{'SQLite' if self.is_sqlite else 'PostgreSQL'} {version}, schema {revision}"

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        scripts = ScriptDirectory.from_config(config)
        head = scripts.get_current_head()
        with self._one_at_a_time(), self._writing.begin() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
            if found == head:
                return
            if found is not None:
                self._refuse_newer(found, scripts)
                self._copy_aside(found)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @staticmethod
    def _refuse_newer(found: str, scripts: ScriptDirectory) -> None:
        if found not in {script.revision for script in scripts.walk_revisions()}:
            raise DatabaseTrouble(
                "The database was written by a newer version of this program",
                why=f"its schema is “{found}”, this program knows up to “{scripts.get_current_head()}”",
                fix="Upgrade this program, or open another database",
                revision=found,
            )

    def _copy_aside(self, revision: str) -> None:
        """Before an upgrade. A copy through SQLite itself: the WAL belongs to it too."""
        if not self.is_sqlite:
            return  # the server's administrator keeps backups; the upgrade is one transaction there
        path = Path(str(self._url.database))
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = path.with_name(f"{path.name}.before-upgrade-{revision}-{stamp}")
        aside.touch(mode=0o600)
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(aside)) as target:
            source.backup(target)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Console and engine may open a new database in the same second: only one migrates."""
        if self.is_sqlite:
            path = Path(str(self._url.database))
            with path.with_name(path.name + ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            return
        with self.engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:n)"), {"n": _ADVISORY_LOCK})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:n)"), {"n": _ADVISORY_LOCK})


@contextmanager
def translated() -> Iterator[None]:
    """Errors of SQLAlchemy and its drivers become ours, by class and code. No statement leaves in a message."""
    try:
        yield
    except IntegrityError as error:
        raise _integrity(error) from error
    except DBAPIError as error:
        raise DatabaseTrouble("The database refused", why=_words(error), **_codes(error)) from error
    except SQLAlchemyError as error:
        raise DatabaseTrouble("The database failed", why=type(error).__name__) from error
    except (OSError, sqlite3.Error) as error:
        raise DatabaseTrouble("The database's file cannot be used", why=str(error)) from error


def _integrity(error: IntegrityError) -> VaporError:
    codes = _codes(error)
    if codes["code_of_driver"] in _FOREIGN_KEY:
        return NotFound("What this record belongs to is not in the database (any more)", **codes)
    return Conflict("Somebody else wrote that record meanwhile", **codes)


def _codes(error: DBAPIError) -> dict[str, Any]:
    original = error.orig
    code = getattr(original, "sqlite_errorcode", None) or getattr(original, "sqlstate", None)
    return {"code_of_driver": code}


def _words(error: DBAPIError) -> str:
    """The driver's first line: it has no values in it, the statement's parameters might."""
    return str(error.orig).strip().partition("\n")[0]


def _checked_url(text_url: str) -> URL:
    try:
        url = make_url(text_url)
    except ArgumentError as error:
        raise DatabaseTrouble("That is not a database URL", fix="Write sqlite:////path/to/file") from error
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise DatabaseTrouble("The database must be a file", why="several processes meet in it")
    return url


def _engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": BUSY_TIMEOUT_S}}


def _prepare_sqlite(engine: Engine) -> None:
    path = Path(str(engine.url.database))
    with translated():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own idea of when a transaction begins is switched off; _on_begin says it.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_S * 1000}",
            "journal_mode=WAL",
            "foreign_keys=ON",
            "synchronous=NORMAL",  # WAL: a power cut may lose the last moments, never the file
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A transaction that begins by reading and writes later fails at once when another wrote meanwhile,
        # whatever busy_timeout says: so a writer says so at its beginning.
        writes = connection.get_execution_options().get("vapor_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
