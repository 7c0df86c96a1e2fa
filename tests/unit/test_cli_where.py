"""Which database, and whose secrets: options, environment and credentials; no password where others can read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vapor_desktop import app
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.store.secrets import FileSecrets


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VAPOR_DATABASE_URL", "VAPOR_CREDENTIALS", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def test_the_option_wins_over_the_environment(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vapor_desktop.cli.main",
            "--database",
            f"sqlite:///{tmp_path}/a.db",
            "engines",
            "--json",
        ],
        env={**os.environ, "VAPOR_DATABASE_URL": f"sqlite:///{tmp_path}/b.db"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == []
    assert (tmp_path / "a.db").exists()
    assert not (tmp_path / "b.db").exists()


def test_a_password_has_no_place_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAPOR_DATABASE_URL", "postgresql+psycopg://vapor:geheim@db/vapor")
    with pytest.raises(InvalidRequest) as caught:
        app.database_url()
    assert "geheim" not in str(caught.value)
    assert "pgpass" in caught.value.fix
    monkeypatch.setenv("VAPOR_DATABASE_URL", "postgresql+psycopg://vapor@db/vapor")
    assert app.database_url() == "postgresql+psycopg://vapor@db/vapor"


def test_a_system_unit_has_its_database_from_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(InvalidRequest, match="PostgreSQL"):
        app.database_url()
    url = "postgresql+psycopg://vapor:geheim@db/vapor"
    (tmp_path / "vapor_database-url").write_text(url + "\n")
    assert app.database_url() == url
    assert isinstance(app._secrets(), FileSecrets)


def test_a_system_unit_refuses_a_file_for_its_database(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vapor_desktop.cli.engine", "--database", f"sqlite:///{tmp_path}/a.db"],
        env={**os.environ, "CREDENTIALS_DIRECTORY": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "needs PostgreSQL" in done.stderr
