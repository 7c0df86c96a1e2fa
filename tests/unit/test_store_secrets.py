"""systemd credentials as secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from vapor_desktop.model.errors import KeyringMissing, NotAllowed
from vapor_desktop.store import FileSecrets


def test_credentials_are_read_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "site-token.a").write_text("vapor1.x\n")
    secrets = FileSecrets()
    assert secrets.get("site-token.a") == "vapor1.x"
    assert secrets.get("site-token.b") is None
    for name in ("../etc/passwd", "", "..", "/etc/passwd"):
        with pytest.raises(NotAllowed):
            secrets.get(name)
    with pytest.raises(NotAllowed, match="systemd-creds encrypt"):
        secrets.put("site-token.b", "x")
    with pytest.raises(NotAllowed):
        secrets.forget("site-token.a")
    assert [path.name for path in tmp_path.iterdir()] == ["site-token.a"]


@pytest.mark.parametrize("given", [None, "", "/nonexistent"])
def test_without_systemd_there_is_no_silent_fallback(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    if given is not None:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", given)
    with pytest.raises(KeyringMissing):
        FileSecrets()
