"""Every kind of operation there is. Tests make their matrix of cuts from it, so a new step is covered by itself."""

from __future__ import annotations

from vapor_desktop.engine.operations.drill import DRILL, STOP_DRILL
from vapor_desktop.engine.operations.failover import FAILOVER
from vapor_desktop.engine.operations.migration import MIGRATION
from vapor_desktop.engine.operations.plan_run import PLAN_RUN
from vapor_desktop.engine.operations.provisional import COMMIT, ROLLBACK
from vapor_desktop.engine.operations.reprotect import REPROTECT
from vapor_desktop.engine.operations.resolve import RESOLVE
from vapor_desktop.engine.operations.steps import OperationType
from vapor_desktop.model.operations import OperationKind

_ALL = (FAILOVER, MIGRATION, PLAN_RUN, COMMIT, ROLLBACK, RESOLVE, REPROTECT, DRILL, STOP_DRILL)
TYPES: dict[OperationKind, OperationType] = {kind.kind: kind for kind in _ALL}
