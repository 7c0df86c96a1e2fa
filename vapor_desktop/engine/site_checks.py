"""What only the whole console can see of a site that was just paired: its libvirt over SSH, its doctor's word."""

from __future__ import annotations

from collections.abc import Sequence

from vapor_desktop.engine.checklist import OnCheck, run_checks
from vapor_desktop.engine.ports import SiteGateway
from vapor_desktop.model.sites import Site
from vapor_desktop.model.view import Check

_LIBVIRT, _HOST = "This console reaches its libvirt over SSH", "vapor-site doctor finds nothing there"


def look_over(gateway: SiteGateway, site: Site, on_check: OnCheck) -> Sequence[Check]:
    """Each reported live. The site is paired whatever is found: what fails names its fix."""

    def libvirt() -> Check:
        found = gateway.hypervisor(site).domains()
        return Check("libvirt-ssh", _LIBVIRT, "ok", f"{len(found)} VM{'' if len(found) == 1 else 's'}")

    def host() -> Check:
        bad = [c for c in gateway.api(site).health().checks if not c.ok]
        if bad:
            text = "; ".join(f"{c.name}: {c.found}" for c in bad)
            return Check("doctor", _HOST, "warning", text, " ".join(dict.fromkeys(c.fix for c in bad if c.fix)))
        return Check("doctor", _HOST, "ok")

    return run_checks([("libvirt-ssh", _LIBVIRT, libvirt), ("doctor", _HOST, host)], on_check)
