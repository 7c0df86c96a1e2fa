"""What a site is looked over for right after it was paired: clock, libvirt, the doctor's findings, storage."""

from __future__ import annotations

from collections.abc import Sequence

from vapor_desktop.engine.checklist import OnCheck, run_checks
from vapor_desktop.engine.ports import SiteGateway
from vapor_desktop.model.rpo import CLOCK_TELLS_S
from vapor_desktop.model.sites import Site
from vapor_desktop.model.view import Check

_CLOCK, _LIBVIRT, _HOST, _STORAGE = "Clock", "libvirt over SSH", "The host", "Storage for replicas"


def look_over(gateway: SiteGateway, site: Site, on_check: OnCheck) -> Sequence[Check]:
    """All of it, each reported live. The site is paired whatever is found: what fails names its fix."""

    def clock() -> Check:
        _identity, offset_s, error_s = gateway.api(site).identity()
        text = f"{offset_s:+.2f} s ± {error_s:.2f} s against this console"
        if abs(offset_s) > CLOCK_TELLS_S:
            return Check("clock", _CLOCK, "warning", text, "Set the clock there (NTP); ages use the measured offset")
        return Check("clock", _CLOCK, "ok", text)

    def libvirt() -> Check:
        found = gateway.hypervisor(site).domains()
        return Check("libvirt", _LIBVIRT, "ok", f"{len(found)} VM{'' if len(found) == 1 else 's'}")

    def host() -> Check:
        bad = [c for c in gateway.api(site).health().checks if not c.ok]
        if bad:
            text = "; ".join(f"{c.name}: {c.found}" for c in bad)
            return Check("host", _HOST, "warning", text, " ".join(dict.fromkeys(c.fix for c in bad if c.fix)))
        return Check("host", _HOST, "ok", "vapor-site doctor finds nothing")

    def storage() -> Check:
        roots = gateway.api(site).storage()
        text = "; ".join(
            f"{r.path}: {r.free_bytes / 2**30:.1f} of {r.total_bytes / 2**30:.1f} GiB free" for r in roots
        )
        if not any(r.free_bytes > r.reserve_bytes for r in roots):
            return Check("storage", _STORAGE, "warning", text or "none", "Free space there, or add a replica root")
        return Check("storage", _STORAGE, "ok", text)

    return run_checks(
        [
            ("clock", _CLOCK, clock),
            ("libvirt", _LIBVIRT, libvirt),
            ("host", _HOST, host),
            ("storage", _STORAGE, storage),
        ],
        on_check,
    )
