"""Recovery plans at the sites that keep them."""

from __future__ import annotations

from vapor_desktop.model.plans import Plan
from vapor_desktop.model.policy import Value


class PlanWrite(Value):
    """PUT /plans/{plan}: keep this copy. ``expect_version``: of the copy that is there now, 0 for none.

    EDIT-OUTDATED when it has moved; a tombstone (``plan.deleted``) is written the same way. Idempotent.
    """

    plan: Plan
    expect_version: int
