"""The settings file: its example is true, mistakes are named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.site.settings import SiteSettings, load_settings

EXAMPLE = Path(__file__).parents[2] / "packaging" / "site" / "site.toml"
SHOWN_ONLY = {
    *("name", "advertised_address", "ssh_address", "webhook", "mail_to", "mail_from"),
    *("smtp_ca_file", "smtp_user", "smtp_password_file"),
}  # no fixed default


def test_the_example_names_every_setting_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAPOR_SITE_CONFIG", "/nowhere/site.toml")
    uncommented = re.sub(r"(?m)^# (\[|[a-z_]+ =)", r"\1", EXAMPLE.read_text())
    shown = tomllib.loads(uncommented)
    defaults = SiteSettings().model_dump(mode="json")
    assert set(shown) == set(defaults)
    assert set(shown["alarm"]) == set(defaults["alarm"])
    for section, default in ((shown, defaults), (shown["alarm"], defaults["alarm"])):
        for key in set(section) - SHOWN_ONLY - {"alarm"}:
            assert section[key] == default[key], key


def test_the_file_is_read_and_the_environment_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.toml").write_text('name = "alpha"\n[alarm]\nwebhook = "http://x/"\n')
    monkeypatch.setenv("VAPOR_SITE_CONFIG", str(tmp_path / "s.toml"))
    monkeypatch.setenv("STATE_DIR", "/tmp/evil")  # noqa: S108
    monkeypatch.setenv("PORT", "1")
    settings = load_settings()
    assert (settings.name, settings.alarm.webhook, settings.port) == ("alpha", "http://x/", 7770)
    assert settings.state_dir == Path("/var/lib/vapor")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1\n", "prot"),
        ("port = 70000\n", "port"),
        ("port = = 1\n", "cannot be read"),
        ("replica_roots = []\n", "replica_roots"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, named: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    monkeypatch.setenv("VAPOR_SITE_CONFIG", str(tmp_path / "s.toml"))
    with pytest.raises(InvalidRequest, match=named):
        load_settings()
