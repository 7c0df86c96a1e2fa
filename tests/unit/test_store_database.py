"""Opening, upgrading and refusing databases."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from store_postgres import new_database, postgres_server

from vapor_desktop.model.errors import DatabaseTrouble
from vapor_desktop.store import SqlRepository, database
from vapor_desktop.store.database import Database
from vapor_desktop.store.schema import metadata


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def differences(opened: Database) -> list[object]:
    with opened.read() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


def test_the_migrations_make_what_the_schema_says(tmp_path: Path) -> None:
    opened = Database(url_of(tmp_path / "vapor.db"))
    assert differences(opened) == []
    opened.close()
    with postgres_server() as server:
        opened = Database(new_database(server, "compared"))
        assert differences(opened) == []
        opened.close()


def test_the_file_is_private_and_in_wal(tmp_path: Path) -> None:
    path = tmp_path / "state" / "vapor.db"
    SqlRepository(url_of(path)).close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert list(path.parent.glob("*before-upgrade*")) == []


def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "vapor.db"
    SqlRepository(url_of(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(DatabaseTrouble, match="newer version") as caught:
        SqlRepository(url_of(path))
    assert caught.value.details["revision"] == "9999"
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)
    connection.close()


HEAD = max(path.name[1:5] for path in (database._MIGRATIONS / "versions").glob("r[0-9]*.py"))
LATER = """
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "9998", "{head}", None, None
def upgrade():
    op.add_column("settings", sa.Column("note", sa.Text()))
    {tail}
"""


def later_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: str = "pass") -> None:
    """This program, one schema later."""
    migrations = tmp_path / "later"
    shutil.copytree(database._MIGRATIONS, migrations, ignore=shutil.ignore_patterns("__pycache__"))
    (migrations / "versions" / "r9998_later.py").write_text(LATER.format(tail=tail, head=HEAD))
    monkeypatch.setattr(database, "_MIGRATIONS", migrations)


def test_an_upgrade_copies_the_file_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vapor.db"
    old = SqlRepository(url_of(path))
    old.set_setting("kept", "yes")
    old.close()
    later_program(tmp_path, monkeypatch)
    new = SqlRepository(url_of(path))
    assert new.setting("kept") == "yes"
    new.close()
    (aside,) = tmp_path.glob(f"vapor.db.before-upgrade-{HEAD}-*")
    assert aside.stat().st_mode & 0o777 == 0o600
    for file, version, columns in ((aside, HEAD, 2), (path, "9998", 3)):
        connection = sqlite3.connect(file)
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (version,)
        assert len(connection.execute("SELECT * FROM settings").fetchone()) == columns
        connection.close()


def test_a_failed_upgrade_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vapor.db"
    SqlRepository(url_of(path)).close()
    with monkeypatch.context() as patch:
        later_program(tmp_path, patch, tail='op.execute("SELECT * FROM nonsense")')
        with pytest.raises(DatabaseTrouble):
            SqlRepository(url_of(path))
    again = SqlRepository(url_of(path))
    assert differences(again._db) == []
    again.close()


def test_two_processes_open_a_new_database_together(tmp_path: Path) -> None:
    script = "import sys; from vapor_desktop.store import SqlRepository; SqlRepository(sys.argv[1]).close()"
    started = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", script, url_of(tmp_path / "vapor.db")])
        for _ in range(4)
    ]
    assert [process.wait(60) for process in started] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "not a database URL"),
        ("sqlite://", "must be a file"),
        ("oracle+nothing://x/y", "No driver"),
        ("sqlite:////proc/vapor/vapor.db", "cannot be used"),
        ("postgresql+psycopg://vapor@/postgres?host=/nonexistent", "refused"),
    ],
)
def test_what_does_not_open_says_so(url: str, words: str) -> None:
    with pytest.raises(DatabaseTrouble, match=words):
        SqlRepository(url)


def test_something_else_than_a_database(tmp_path: Path) -> None:
    path = tmp_path / "vapor.db"
    path.write_bytes(b"this is no database at all\n" * 100)
    with pytest.raises(DatabaseTrouble) as caught:
        SqlRepository(url_of(path))
    assert caught.value.details["code_of_driver"] == sqlite3.SQLITE_NOTADB
    assert path.read_bytes().startswith(b"this is no database")


def test_a_busy_database_is_trouble_not_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 1)
    repository = SqlRepository(url_of(tmp_path / "vapor.db"))
    blocker = sqlite3.connect(tmp_path / "vapor.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseTrouble) as caught:
        repository.set_setting("a", "b")
    assert caught.value.details["code_of_driver"] == sqlite3.SQLITE_BUSY
    assert repository.setting("a") is None  # readers go on
    blocker.execute("ROLLBACK")
    blocker.close()
    repository.set_setting("a", "b")
    repository.close()


def test_what_a_newer_program_wrote_into_a_document(tmp_path: Path) -> None:
    repository = SqlRepository(url_of(tmp_path / "vapor.db"))
    connection = sqlite3.connect(tmp_path / "vapor.db")
    connection.execute("""INSERT INTO sites VALUES ('s', 's', '{"site_id": "s", "secret": 1}')""")
    connection.commit()
    connection.close()
    with pytest.raises(DatabaseTrouble, match="cannot be read"):
        repository.sites()
    repository.close()
