"""Versions and licences of what runs here, from the metadata of the installed distributions."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from email.message import Message
from importlib import metadata
from typing import cast

from vapor_desktop import __version__
from vapor_desktop.model.about import About, Component

DISTRIBUTION = "vapor-desktop"
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_DEVELOPMENT = re.compile(r"""extra\s*==\s*['"]dev['"]""")


def about(facts: Mapping[str, str]) -> About:
    """``facts``: what only adapters know, e.g. the version of the libvirt client library."""
    versions = (
        ("Vapor Desktop", __version__),
        ("Python", platform.python_version()),
        *facts.items(),
        ("System", f"{_system()}, {platform.machine()}"),
    )
    return About(versions, tuple(components()))


def components() -> list[Component]:
    """Everything that an installed part of this program needs, and what that needs in turn."""
    found: dict[str, Component] = {}
    waiting = [_key(r) for r in metadata.requires(DISTRIBUTION) or () if not _DEVELOPMENT.search(r)]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            dist = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of a part that is not installed here, or for another system
        found[name] = Component(dist.metadata["Name"], dist.version, licence(_fields(dist)))
        waiting += [_key(r) for r in dist.requires or () if "extra ==" not in r.replace("'", "")]
    return sorted(found.values(), key=lambda c: c.name.casefold())


def licence(fields: Message) -> str:
    """The SPDX expression; else the classifiers; else the first line of what the field License holds."""
    expression = fields.get("License-Expression")
    if expression:
        return str(expression)
    classifiers = [c.rpartition(" :: ")[2] for c in fields.get_all("Classifier") or () if c.startswith("License ::")]
    named = [c for c in classifiers if c != "OSI Approved"]
    text = str(fields.get("License") or "").strip()
    first = text.partition("\n")[0].strip()
    return first if first and (len(text) <= 60 or not named) else ", ".join(named)


def _fields(dist: metadata.Distribution) -> Message:
    return cast(Message, dist.metadata)  # its declared type leaves ``get`` out


def _key(requirement: str) -> str:
    found = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.platform(terse=True)
