"""Versions and licences, from what is really installed."""

from __future__ import annotations

from email.message import Message
from importlib import metadata

from vapor_desktop.engine.about import about, components, licence


def test_the_licences_of_what_we_ship_are_all_named() -> None:
    found = {c.name.casefold(): c for c in components()}
    assert {"lxml", "sqlalchemy", "paramiko", "pydantic", "jeepney", "alembic"} <= set(found)
    assert [c.name for c in found.values() if not c.licence] == []
    assert found["lxml"].version == metadata.version("lxml")
    assert "pytest" not in found  # only for development


def test_versions_start_with_the_program_and_hold_what_adapters_know() -> None:
    told = about({"libvirt client": "9.0.0"})
    assert told.versions[0][0] == "Vapor Desktop"
    assert ("libvirt client", "9.0.0") in told.versions
    assert "libvirt client: 9.0.0" in told.lines()


def test_where_a_licence_is_looked_for() -> None:
    def of(*fields: tuple[str, str]) -> str:
        made = Message()
        for key, value in fields:
            made[key] = value
        return licence(made)

    mit = ("Classifier", "License :: OSI Approved :: MIT License")
    assert of(("License-Expression", "Apache-2.0"), mit) == "Apache-2.0"
    assert of(mit, ("License", "x" * 500)) == "MIT License"
    assert of(("License", "BSD\nand its long text")) == "BSD"
    assert of() == ""
