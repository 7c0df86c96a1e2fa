"""The scratch space runs full while the site service is dead: its next start lets the guest run again."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import kill, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]
CACHE = Path.home() / ".cache/vapor-lab"
TINY = "/var/lib/libvirt/images/tiny"
CONSOLE = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def site(lab_lock: None) -> Iterator[Site]:
    lab = Lab("guard", cache=CACHE)
    lab.up(guest_specs=[])
    site = lab.sites["a"]
    # Before the guest: a QEMU sees the mounts of the moment it started.
    site.exec(["mkdir", "-p", TINY])
    site.exec(["mount", "-t", "tmpfs", "-o", "size=2M,mode=777", "tmpfs", TINY])
    lab.add_guest(GuestSpec("web"))
    yield site
    lab.down()


def api(site: Site) -> httpx2.Client:
    """A console's client, paired by the one-time token's pin."""
    pem = ssl.get_server_certificate((site.address, 7770))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=pem)

    def client(token: str) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {token}"}
        base = f"{site.api_url}/api/v1"
        return httpx2.Client(base_url=base, verify=context, headers=headers, trust_env=False, timeout=30)

    with client(site.token_new()) as once:
        body = {"console_name": "test", "console_id": CONSOLE}
        return client(once.post("/tokens/exchange", json=body).json()["token"])


def state(site: Site) -> str:
    return site.virsh("domstate", "--reason", "web")


def begin(site: Site, vm: str) -> None:
    live = site.virsh("domid", "web")
    socket = f"/var/lib/libvirt/qemu/domain-{live}-web/vapor-guard.sock"
    disks = [
        line.split()[2] for line in site.virsh("domblklist", "--details", "web").splitlines() if " disk " in line
    ]
    listed = "".join(
        f"<disk name='{disk}' backup='yes' type='file'><scratch file='{TINY}/{disk}'/></disk>" for disk in disks
    )
    server = f"<server transport='unix' socket='{socket}'/>"
    xml = f"<domainbackup mode='pull'>{server}<disks>{listed}</disks></domainbackup>"
    site.path(f"/var/lib/libvirt/{vm}.xml").write_text(xml)
    site.virsh("backup-begin", "web", f"/var/lib/libvirt/{vm}.xml")


def test_a_guest_paused_by_our_full_scratch_runs_again_after_the_services_restart(site: Site) -> None:
    site.wait_boot("web", timeout_s=120)
    vm = site.virsh("domuuid", "web")
    site.set_rates("web", scratch=0, discard=0, zero=0)
    fill = "disk=$(ls /dev/[vs]d?3 | head -n 1); dd if=/dev/urandom of=$disk bs=64k count=96 conv=fsync"
    site.guest_shell("web", fill)  # allocates what is overwritten during the job
    with api(site) as client:
        watch = {"holder": "engine", "ttl_s": 600, "scratch_dir": TINY, "reserve_bytes": 0}
        assert client.put(f"/guardian/{vm}/job", json=watch).status_code == 204
        kill(site.pid_of("serve"))
        begin(site, vm)
        site.guest_shell("web", f"({fill}) >/dev/null 2>&1 </dev/null &")
        wait_until(lambda: state(site) == "paused (I/O error)", "the scratch to run full", timeout_s=40, every_s=0.5)
        site.start_site_service()
        wait_until(lambda: state(site).startswith("running"), "the guest to run again", timeout_s=30, every_s=0.2)
        events = client.get("/guardian/events").json()
    assert [(item["what"], item["vm_uuid"]) for item in events] == [("job-ended", vm), ("resumed", vm)]
    assert "scratch space was full" in events[1]["why"], json.dumps(events)
    assert "None" in site.virsh("domjobinfo", "web")
    assert site.exec(["ls", TINY]).stdout == ""
    before = len(site.serial("web"))
    site.guest_shell("web", "echo VAPOR-ALIVE > /dev/console")
    site.wait_serial("web", "VAPOR-ALIVE", after=before)
