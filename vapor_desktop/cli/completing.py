"""What a shell offers after the Tab key: names from the database. Trouble offers nothing; the verb tells it."""

from __future__ import annotations

from collections.abc import Callable

import click

from vapor_desktop.cli import program
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.view import Snapshot

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _of(names: Callable[[Snapshot], list[str]]) -> Complete:
    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        try:
            with program.reading() as backend:
                known = names(backend.snapshot())
        except VaporError:
            return []
        return sorted({name for name in known if name.casefold().startswith(incomplete.casefold())})

    return complete


vm_names = _of(lambda seen: [r.protection.vm_name for r in seen.protections])
site_names = _of(lambda seen: [s.site.name for s in seen.sites])
plan_names = _of(lambda seen: [p.plan.name for p in seen.plans])
operation_ids = _of(lambda seen: [o.operation_id for o in seen.operations])
