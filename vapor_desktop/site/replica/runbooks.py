"""The runbook's files beside a replica: ``runbook/runbook.txt`` and the finished definitions that it names.

A definition's name says what it is for and a piece of its digest: a text that somebody is just following goes on
naming the file that it was written with.
"""

from __future__ import annotations

from hashlib import sha256

from vapor_desktop.site.replica.files import make_dir, remove, write_durable
from vapor_desktop.site.replica.layout import Layout

TEXT = "runbook.txt"
KEPT = 8  # definitions: the newest, and those that a person may be using


def xml_name(epoch: int, seq: int, xml: str) -> str:
    """The definition's file name."""
    return f"domain-e{epoch}-p{seq}-{sha256(xml.encode()).hexdigest()[:8]}.xml"


def keep(layout: Layout, text: str | None, name: str, xml: str) -> None:
    """Under the replica's lock. ``name`` "": there is no definition."""
    make_dir(layout.runbook)
    path = layout.runbook / name
    if name and not path.exists():
        write_durable(path, xml.encode())
    if text is not None:
        write_durable(layout.runbook / TEXT, text.encode())
    definitions = sorted(layout.runbook.glob("domain-*.xml"), key=lambda p: p.stat().st_mtime_ns)
    for old in definitions[:-KEPT]:
        if old != path:
            remove(old)
