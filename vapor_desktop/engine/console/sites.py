"""Sites: pairing, forgetting, looking at them."""

from __future__ import annotations

from collections.abc import Sequence

from vapor_desktop.engine import site_checks
from vapor_desktop.engine.backend import OnCheck
from vapor_desktop.engine.console.desk import Desk
from vapor_desktop.model.errors import Conflict, InvalidRequest
from vapor_desktop.model.sites import Site
from vapor_desktop.model.view import SiteProbe


class SitesDesk(Desk):
    """Sites and pairs of them."""

    def normalise_url(self, text: str) -> str:
        """Pure. Raises InvalidRequest."""
        return self._pairing.normalise_url(text)

    def probe_site(self, url: str) -> SiteProbe:
        """The first look, before any secret leaves."""
        return self._pairing.probe(url)

    def add_site(self, probe: SiteProbe, token: str, on_check: OnCheck) -> Site:
        """Exchange the token, keep the console's own one in the keyring, learn and enrol keys."""
        site = self._pairing.add_site(probe, token.strip(), on_check)
        if any(s.name == site.name and s.site_id != site.site_id for s in self._repository.sites()):
            site = site.model_copy(update={"name": f"{site.name} ({site.site_id[:4]})"})
        self._repository.save_site(site)
        self._gateway.drop(site.site_id)
        self._note("site-paired", f"Paired with {site.name} ({site.api_url})", site_id=site.site_id)
        site_checks.look_over(self._gateway, site, on_check)
        self._engine.sites.look(site, inventory=True)
        self._engine.retry_soon({site.site_id})
        return site

    def pair_sites(self, site_a: str, site_b: str, on_check: OnCheck) -> str:
        """Both ways. Returns the route."""
        if site_a == site_b:
            raise InvalidRequest("A site cannot be paired with itself")
        route = self._pairing.pair_sites(self._site(site_a), self._site(site_b), on_check)
        self._repository.save_pair(site_a, site_b, route)
        self._engine.retry_soon({site_a, site_b})
        return route

    def remove_site(self, site_id: str) -> None:
        """Forget a site; refused while a protection uses it."""
        site = self._site(site_id)
        used = [p.vm_name for p in self._repository.protections() if site_id in {p.source_site, p.target_site}]
        if used:
            raise Conflict(
                f"{site.name} is used by the protection of {', '.join(sorted(used))}", fix="Unprotect those first"
            )
        self._pairing.forget_site(site)
        self._gateway.drop(site_id)
        self._repository.remove_site(site_id)

    def site_networks(self, site_id: str) -> Sequence[str]:
        """libvirt networks at the site."""
        return self._gateway.hypervisor(self._site(site_id)).networks()

    def look(self, site_id: str) -> None:
        """Look at a site now; what is seen is in the next snapshot."""
        self._engine.sites.look(self._site(site_id), inventory=False)
