"""Recovery plans that use this site as a target: one file each, so that any console finds them here."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from vapor_desktop.model.errors import EditOutdated, InvalidRequest, NotFound, Unexpected
from vapor_desktop.model.plans import Plan
from vapor_desktop.model.wire import PlanWrite
from vapor_desktop.site.enrolments import uuid_text
from vapor_desktop.site.statefile import locked, make_dir, read_json, write_json


class PlanBook:
    """``plans/<plan id>.json``. Safe across processes; a write is whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def all(self) -> list[Plan]:
        """Every one, tombstones too: a console that was away must learn what was deleted."""
        if not self._directory.is_dir():
            return []
        return [self._read(path) for path in sorted(self._directory.glob("*.json"))]

    def get(self, plan_id: str) -> Plan:
        """One of them. Raises NotFound."""
        path = self._path(plan_id)
        if not path.exists():
            raise NotFound("There is no such recovery plan at this site")
        return self._read(path)

    def write(self, plan_id: str, request: PlanWrite) -> Plan:
        """Keep it if the copy here is still at ``expect_version``. Raises EditOutdated, InvalidRequest."""
        plan = request.plan
        if plan.plan_id != uuid_text(plan_id, "the plan"):
            raise InvalidRequest("The plan in the body is another one than in the path")
        make_dir(self._directory)
        path = self._path(plan_id)
        with locked(path):
            known = self._read(path) if path.exists() else None
            if known == plan:
                return plan
            version = known.version if known is not None else 0
            if version != request.expect_version or plan.version <= version:
                raise EditOutdated(
                    f"The recovery plan “{plan.name}” was changed since it was read",
                    why=f"version {version} is here, the edit was made on {request.expect_version}",
                    fix="Look at it again, then repeat the change",
                    version=version,
                )
            write_json(path, plan.model_dump(mode="json"))
        return plan

    def _path(self, plan_id: str) -> Path:
        return self._directory / f"{uuid_text(plan_id, 'the plan')}.json"

    def _read(self, path: Path) -> Plan:
        try:
            return Plan.model_validate(read_json(path), strict=False)
        except ValidationError as error:
            raise Unexpected(
                f"{path} is no recovery plan that this program knows",
                why=str(error.errors(include_input=False, include_url=False)[0]["msg"]),
                fix="Was it written by a newer vapor-site? Else move the file away",
            ) from error
