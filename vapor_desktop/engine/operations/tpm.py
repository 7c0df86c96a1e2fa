"""Bringing a VM's TPM up with a recovery point: one way for a failover and for a drill's copy."""

from __future__ import annotations

from vapor_desktop.engine.ports import SiteApi
from vapor_desktop.model.domain_xml.parse import parse_domain
from vapor_desktop.model.tpm import TpmPlan, plan_tpm
from vapor_desktop.model.wire import PlaceTpm


def look_at_tpm(api: SiteApi, vm_uuid: str, seq: int, domain_xml: str) -> TpmPlan | None:
    """What a start from that point does about the TPM of ``domain_xml``; None: the VM has none.

    ``api``: of the site that holds the point and starts the VM. ``build_target`` takes ``TpmPlan.device``.
    """
    facts = parse_domain(domain_xml)
    if not facts.has_tpm:
        return None
    return plan_tpm(facts.tpm_obstacle, api.point_tpm(vm_uuid, seq))


def place_tpm(
    api: SiteApi, plan: TpmPlan | None, vm_uuid: str, seq: int, fence: int, as_uuid: str | None = None
) -> tuple[str, ...]:
    """Before the VM is defined and started: put the point's TPM state in place; what a person has to know.

    ``as_uuid``: of a drill's copy; None: the VM itself. Idempotent until the VM has run; what lay there before
    is kept aside. Raises Conflict while a TPM uses what lies there, StaleLease.
    """
    if plan is None:
        return ()
    if not plan.place:
        return (plan.note,)
    placed = api.place_tpm(vm_uuid, seq, PlaceTpm(fence=fence, as_uuid=as_uuid or vm_uuid))
    return (f"Another TPM state lay at the target; it is kept at {placed.kept}",) if placed.kept else ()
