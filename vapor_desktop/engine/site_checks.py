"""What a site is looked over for right after it was paired: clock, libvirt, storage, its doctor's word."""

from __future__ import annotations

from collections.abc import Sequence

from vapor_desktop.engine.checklist import OnCheck, run_checks
from vapor_desktop.engine.ports import SiteGateway
from vapor_desktop.model.rpo import CLOCK_TELLS_S
from vapor_desktop.model.sites import Site
from vapor_desktop.model.view import Check

_CLOCK, _LIBVIRT = "Its clock is right", "This console reaches its libvirt over SSH"
_STORAGE, _HOST = "It has room for replicas", "vapor-site doctor finds nothing there"


def look_over(gateway: SiteGateway, site: Site, on_check: OnCheck) -> Sequence[Check]:
    """Each reported live. The site is paired whatever is found: what fails names its fix."""

    def clock() -> Check:
        _identity, offset_s, error_s = gateway.api(site).identity()
        text = f"{offset_s:+.2f} s ± {error_s:.2f} s against this console"
        if abs(offset_s) > CLOCK_TELLS_S:
            fix = "Set the clock there (chrony, systemd-timesyncd) or here; ages use the measured offset"
            return Check("clock", _CLOCK, "warning", text, fix)
        return Check("clock", _CLOCK, "ok", text)

    def libvirt() -> Check:
        found = gateway.hypervisor(site).domains()
        return Check("libvirt-ssh", _LIBVIRT, "ok", f"{len(found)} VM{'' if len(found) == 1 else 's'}")

    def storage() -> Check:
        free = max((r.free_bytes - r.reserve_bytes for r in gateway.api(site).storage()), default=0)
        text = f"{max(free, 0) / 2**30:.1f} GiB beyond the reserve, in {site.replica_root}"
        if free <= 0:
            return Check("storage", _STORAGE, "warning", text, "Free space there, or add a replica root")
        return Check("storage", _STORAGE, "ok", text)

    def host() -> Check:
        bad = [c for c in gateway.api(site).health().checks if not c.ok]
        if bad:
            text = "; ".join(f"{c.name}: {c.found}" for c in bad)
            return Check("doctor", _HOST, "warning", text, " ".join(dict.fromkeys(c.fix for c in bad if c.fix)))
        return Check("doctor", _HOST, "ok")

    looks = (
        ("clock", _CLOCK, clock),
        ("libvirt-ssh", _LIBVIRT, libvirt),
        ("storage", _STORAGE, storage),
        ("doctor", _HOST, host),
    )
    return run_checks(looks, on_check)
