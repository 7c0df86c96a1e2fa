"""The target's own start guard: a host that the VM once came from guards it, and must be told whose it is."""

from __future__ import annotations

from vapor_desktop.engine.operations.steps import StepContext
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.wire import GuardRequest, GuardState


def tell_target(ctx: StepContext, epoch: Epoch, reason: str) -> None:
    """Whose the VM is since ``epoch``, to a target that guards it; one that never did is left alone. Repeatable.

    Raises EpochMoved (that host knows a higher one), StaleLease.
    """
    p, target = ctx.protection, ctx.protection.target_site
    api = ctx.api(target)
    if api.guard(p.vm_uuid) is None:
        return
    own = epoch.owner == target
    request = GuardRequest(
        fence=ctx.lease(target).fence,
        epoch=epoch,
        state=GuardState.OWN if own else GuardState.OTHERS,
        vm_name=p.vm_name,
        peer_site=p.source_site,
        policy=p.policy.start_guard,
        boot_id=api.identity()[0].boot_id if own else None,
        reason=reason,
        by=ctx.tools.identity.name,
    )
    api.arm_guard(p.vm_uuid, request)
