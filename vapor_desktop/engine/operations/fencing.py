"""A source that answers after all while its VM is failed over: kept from starting it, and switched off, if asked to.

Never waited for when it is dark: what does not answer within seconds is noted, and the failover goes on.
"""

from __future__ import annotations

from vapor_desktop.engine.operations.steps import RETRY, Ask, Result, StepContext
from vapor_desktop.engine.operations.switching_off import switch_off, vm_state
from vapor_desktop.engine.reaching import reach
from vapor_desktop.model.errors import HypervisorUnreachable, InvalidRequest, SiteUnreachable, VaporError
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.operations import Choice
from vapor_desktop.model.wire import GuardRequest, GuardState

LEAVE, SHUT_DOWN, FORCE_OFF = "leave", "shut down", "force off"
WAYS = (LEAVE, SHUT_DOWN, FORCE_OFF)
GO_ON = Choice(key="go-on", text="Start it at the target all the same: if it runs at its source, it runs twice")


def check_way(args: dict[str, object]) -> str:
    """The arguments' ``source``: what to do with a source that answers. Raises InvalidRequest."""
    way = str(args.get("source") or LEAVE)
    if way not in WAYS:
        raise InvalidRequest(f"“{way}” is not what can be done with a source", fix=f"One of: {', '.join(WAYS)}")
    return way


def fence_source(ctx: StepContext) -> Result:
    """After the take-over: the epoch says already whose it is, so the guard only follows."""
    p, way = ctx.protection, check_way(ctx.operation.args)
    if way == LEAVE:
        ctx.note("The source was left as it is")
        return {"source": "left as it is"}
    if ctx.answers.get("fence") == GO_ON.key:
        ctx.note("The source was not switched off; a person said to go on")
        return {"source": "not switched off"}
    site = ctx.site(p.source_site)
    if not reach(ctx.tools.gateway, site, p.vm_uuid).answers:
        ctx.note(f"{site.name} does not answer: it is fenced when it returns")
        return {"source": "did not answer"}
    try:
        return _fence(ctx, way)
    except (SiteUnreachable, HypervisorUnreachable) as error:
        ctx.note(f"{site.name} does not answer: {error.what}")
        return {"source": "did not answer"}
    except VaporError as error:
        raise Ask(f"The source could not be fenced: {error}", RETRY, GO_ON, error=error) from error


def _fence(ctx: StepContext, way: str) -> Result:
    p = ctx.protection
    request = GuardRequest(
        fence=ctx.lease(p.source_site, takeover=ctx.operation.reason).fence,
        epoch=Epoch(number=ctx.done["take-over"]["epoch"], owner=p.target_site),
        state=GuardState.OTHERS,
        vm_name=p.vm_name,
        peer_site=p.target_site,
        policy=p.policy.start_guard,
        reason=f"failed over: {ctx.operation.reason}",
        by=ctx.tools.identity.name,
    )
    ctx.api(p.source_site).arm_guard(p.vm_uuid, request)
    how = switch_off(ctx, p.source_site, "fence", GO_ON, force=way == FORCE_OFF)
    state = vm_state(ctx.hypervisor(p.source_site), p.vm_uuid)
    ctx.note(f"{ctx.site(p.source_site).name} will not start it; {how}")
    return {"source": f"fenced; {how}", "source_state": state}
