"""The journal of operations. Compare-and-set on ``version``; one open operation per VM."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import insert, select, update

from vapor_desktop.model.errors import Conflict
from vapor_desktop.model.operations import Operation
from vapor_desktop.store.database import Database
from vapor_desktop.store.schema import operations


class OperationStore:
    """Operations as documents."""

    _db: Database

    def save_operation(self, operation: Operation, *, expect_version: int | None = None) -> Operation:
        """Insert, or write over exactly ``expect_version``. Raises Conflict."""
        saved = operation.model_copy(update={"version": operation.version + 1})
        row = {
            "open_vm": None if saved.ended else saved.excludes,
            "version": saved.version,
            "document": saved.model_dump(mode="json"),
        }
        with self._db.write() as connection:
            if expect_version is None:
                key = {"operation_id": saved.operation_id, "vm_uuid": saved.vm_uuid, "started_at": saved.started_at}
                connection.execute(insert(operations).values(**key, **row))
                return saved
            statement = (
                update(operations)
                .where(operations.c.operation_id == saved.operation_id, operations.c.version == expect_version)
                .values(**row)
            )
            if connection.execute(statement).rowcount != 1:
                raise Conflict("Somebody else wrote that operation meanwhile")
        return saved

    def operation(self, operation_id: str) -> Operation | None:
        """None when there is none."""
        query = select(operations.c.document).where(operations.c.operation_id == operation_id)
        with self._db.read() as connection:
            found = connection.execute(query).scalar()
        return None if found is None else Operation.model_validate(found)

    def operations(self, *, open_only: bool = False, limit: int = 200) -> Sequence[Operation]:
        """Newest first."""
        query = select(operations.c.document).order_by(operations.c.started_at.desc()).limit(limit)
        if open_only:
            query = query.where(operations.c.open_vm.is_not(None))
        with self._db.read() as connection:
            rows = connection.execute(query).scalars().all()
        return tuple(Operation.model_validate(row) for row in rows)
