"""Switching a VM off because a person wants it: asked first, and its power is cut only on a person's word."""

from __future__ import annotations

from vapor_desktop.engine.operations.steps import Ask, StepContext
from vapor_desktop.engine.ports import Hypervisor
from vapor_desktop.model.errors import Conflict, DomainNotFound, VaporError
from vapor_desktop.model.operations import Choice

SHUTDOWN_S = 120.0
ACPI_AFTER_S = 10.0
LOOK_EVERY_S = 0.5
OFF = frozenset({"shutoff", "crashed", "undefined"})

WAIT = Choice(key="wait", text="Wait on for it to shut down")
FORCE = Choice(key="force", text="Switch it off now, as a power cut would")


def vm_state(hypervisor: Hypervisor, vm_uuid: str) -> str:
    """libvirt's word, "undefined" for a VM it does not know."""
    try:
        return hypervisor.domain(vm_uuid).state
    except DomainNotFound:
        return "undefined"


def require_off(ctx: StepContext) -> None:
    """Raises Conflict when the VM is not off at its source."""
    state = vm_state(ctx.hypervisor(ctx.protection.source_site), ctx.protection.vm_uuid)
    if state != "shutoff":
        raise Conflict(f"“{ctx.protection.vm_name}” is {state} at its source", fix="Shut it down, or undo")


def switch_off(ctx: StepContext, site_id: str, step: str, *ways_out: Choice, force: bool | None = None) -> str:
    """Until it is off at that site: how that came. ``force`` (by default the arguments') does not ask the guest.

    ``step``: under whose name the question is answered. Raises Ask when the deadline (``shutdown_s``) is over.
    """
    hv, vm = ctx.hypervisor(site_id), ctx.protection.vm_uuid
    if vm_state(hv, vm) in OFF:
        return "it was off"
    answer = ctx.answers.get(step)
    at_once = bool(ctx.operation.args.get("force")) if force is None else force
    if answer == FORCE.key or (answer != WAIT.key and at_once):
        hv.destroy(vm)
        how = "switched off by the operator"
    else:
        how = f"shut down by {_ask_guest(ctx, site_id) or 'itself'}"
    if vm_state(hv, vm) not in OFF:
        name, where = ctx.protection.vm_name, ctx.site(site_id).name
        text = f"“{name}” has not shut down at {where} within {_deadline_s(ctx):.0f} s"
        raise Ask(text, WAIT, FORCE, *ways_out)
    return how


def _ask_guest(ctx: StepContext, site_id: str) -> str:
    """Its agent as soon as that answers, the power button when it does not; until it is off or the deadline."""
    hv, vm, clock = ctx.hypervisor(site_id), ctx.protection.vm_uuid, ctx.tools.clock
    began, asked = clock.monotonic(), list[str]()
    while (waited := clock.monotonic() - began) < _deadline_s(ctx):
        if "its agent" not in asked and vm_state(hv, vm) not in OFF and hv.domain(vm).agent_connected:
            asked.append("its agent")
            try:
                hv.shut_down(vm, agent=True)
            except VaporError as error:
                ctx.note(f"Its agent did not take it: {error.what}")
        elif "the power button" not in asked and waited > ACPI_AFTER_S:
            asked.append("the power button")
            hv.shut_down(vm, agent=False)
        if ctx.wait_until(lambda: vm_state(hv, vm) in OFF, LOOK_EVERY_S):
            break
    return " and ".join(asked)


def _deadline_s(ctx: StepContext) -> float:
    return float(ctx.operation.args.get("shutdown_s") or SHUTDOWN_S)
