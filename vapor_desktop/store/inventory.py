"""Sites, pairs and protections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import delete, select, update

from vapor_desktop.model.errors import Conflict, DatabaseTrouble
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.store.database import Database
from vapor_desktop.store.schema import pairs, protections, settings, sites

_Document = TypeVar("_Document", bound=BaseModel)


def _document(kind: type[_Document], stored: Any) -> _Document:
    try:
        return kind.model_validate(stored, strict=False)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise DatabaseTrouble(
            f"A {kind.__name__.lower()} in the database cannot be read",
            why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix="It may have been written by a newer version of this program",
        ) from error


class InventoryStore:
    """What is protected where."""

    _db: Database

    def sites(self) -> Sequence[Site]:
        """By name."""
        with self._db.read() as connection:
            rows = connection.execute(select(sites.c.document).order_by(sites.c.name, sites.c.site_id))
            return tuple(_document(Site, row.document) for row in rows)

    def site(self, site_id: str) -> Site | None:
        """The site, or None."""
        with self._db.read() as connection:
            found = connection.execute(select(sites.c.document).where(sites.c.site_id == site_id)).first()
        return _document(Site, found.document) if found else None

    def save_site(self, site: Site) -> None:
        """Add or overwrite."""
        row = {"site_id": site.site_id, "name": site.name, "document": site.model_dump(mode="json")}
        with self._db.write() as connection:
            self._db.upsert(connection, sites, [row], ["site_id"])

    def remove_site(self, site_id: str) -> None:
        """Forget the site, its pairs and its clock. Protections stay. Idempotent."""
        with self._db.write() as connection:
            connection.execute(delete(sites).where(sites.c.site_id == site_id))

    def pairs(self) -> Sequence[tuple[str, str, str]]:
        """(site a, site b, route)."""
        with self._db.read() as connection:
            rows = connection.execute(select(pairs).order_by(pairs.c.site_a, pairs.c.site_b))
            return tuple((row.site_a, row.site_b, row.route) for row in rows)

    def save_pair(self, a: str, b: str, route: str) -> None:
        """Add or overwrite; (b, a) is the same pair. Raises NotFound when a site is not known."""
        with self._db.write() as connection:
            turned = update(pairs).where(pairs.c.site_a == b, pairs.c.site_b == a).values(route=route)
            if connection.execute(turned).rowcount == 0:
                row = {"site_a": a, "site_b": b, "route": route}
                self._db.upsert(connection, pairs, [row], ["site_a", "site_b"])

    def protections(self) -> Sequence[Protection]:
        """All, by number."""
        with self._db.read() as connection:
            rows = connection.execute(select(protections.c.document).order_by(protections.c.protection_id))
            return tuple(_document(Protection, row.document) for row in rows)

    def protection(self, protection_id: str) -> Protection | None:
        """The protection, or None."""
        query = select(protections.c.document).where(protections.c.protection_id == protection_id)
        with self._db.read() as connection:
            found = connection.execute(query).first()
        return _document(Protection, found.document) if found else None

    def save_protection(self, protection: Protection, *, expect_version: int | None = None) -> Protection:
        """Write and return it, its version one higher than any before.

        With ``expect_version`` only if the stored version is that one: else, or if it is gone, Conflict.
        """
        key = protection.protection_id
        with self._db.write() as connection:
            query = select(protections.c.version).where(protections.c.protection_id == key).with_for_update()
            stored = connection.execute(query).scalar()
            if expect_version is not None and stored != expect_version:
                raise Conflict(
                    f"The protection of {protection.vm_name} was changed by somebody else meanwhile"
                    if stored is not None
                    else f"The protection of {protection.vm_name} was removed by somebody else meanwhile",
                    fix="Look at it again, then repeat the change",
                    expected=expect_version,
                    stored=stored,
                )
            saved = protection.model_copy(update={"version": max(protection.version, stored or 0) + 1})
            row = {
                "protection_id": key,
                "vm_uuid": saved.vm_uuid,
                "version": saved.version,
                "document": saved.model_dump(mode="json"),
            }
            self._db.upsert(connection, protections, [row], ["protection_id"])
        return saved

    def remove_protection(self, protection_id: str) -> None:
        """Forget it, its points, cycles and samples; events stay. Idempotent."""
        with self._db.write() as connection:
            connection.execute(delete(protections).where(protections.c.protection_id == protection_id))
            connection.execute(delete(settings).where(settings.c.key == f"disks:{protection_id}"))
