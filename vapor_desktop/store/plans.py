"""Recovery plans as cached from their targets, and what was last found of each."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import delete, insert, select, update

from vapor_desktop.model.errors import DatabaseTrouble
from vapor_desktop.model.plans import Plan, PlanStatus
from vapor_desktop.store.database import Database
from vapor_desktop.store.schema import plans

_STATUS = TypeAdapter(PlanStatus)


class PlanStore:
    """Several consoles, one cache; the truth lies at the targets."""

    _db: Database

    def save_plan(self, plan: Plan) -> None:
        """Follow a newer copy; an older one is left out. What was found of an older version is forgotten."""
        with self._db.write() as connection:
            query = select(plans.c.document).where(plans.c.plan_id == plan.plan_id).with_for_update()
            stored = connection.execute(query).scalar()
            if stored is not None and _plan(stored).rank >= plan.rank:
                return
            row = {"name": plan.name, "version": plan.version, "document": plan.model_dump(mode="json")}
            connection.execute(delete(plans).where(plans.c.plan_id == plan.plan_id))
            connection.execute(insert(plans).values(plan_id=plan.plan_id, found=None, **row))

    def plan_copies(self) -> Sequence[Plan]:
        """All, tombstones too."""
        with self._db.read() as connection:
            rows = connection.execute(select(plans.c.document).order_by(plans.c.name, plans.c.plan_id)).scalars()
            return tuple(_plan(row) for row in rows)

    def plan_statuses(self) -> Sequence[PlanStatus]:
        """Living ones, by name."""
        with self._db.read() as connection:
            rows = connection.execute(select(plans).order_by(plans.c.name, plans.c.plan_id)).all()
        found = []
        for row in rows:
            plan = _plan(row.document)
            if plan.deleted:
                continue
            seen = None if row.found is None else _STATUS.validate_python({**row.found, "plan": plan}, strict=False)
            found.append(seen or PlanStatus(plan, None, (), None))
        return tuple(found)

    def save_readiness(self, status: PlanStatus) -> None:
        """Of exactly this version; a newer one has not been looked at."""
        document = _STATUS.dump_python(status, mode="json")
        document.pop("plan")
        statement = (
            update(plans)
            .where(plans.c.plan_id == status.plan.plan_id, plans.c.version == status.plan.version)
            .values(found=document)
        )
        with self._db.write() as connection:
            connection.execute(statement)


def _plan(stored: object) -> Plan:
    try:
        return Plan.model_validate(stored, strict=False)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise DatabaseTrouble(
            "A recovery plan in the database cannot be read",
            why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix="It may have been written by a newer version of this program",
        ) from error
