"""The start guard's hook under a real libvirtd: when it is asked, when not, and that the doctor tells them apart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from private_libvirt import Host, domain_xml, private_host, wait_for

from vapor_desktop.hypervisor.connection import LibvirtHypervisor
from vapor_desktop.model.errors import StartFailed
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.wire import GuardRecord, GuardState
from vapor_desktop.site.guard_hook import hook_path, install, prove, proven
from vapor_desktop.site.settings import SiteSettings

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"
FREE = "9f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"


@dataclass
class Bench:
    host: Host
    settings: SiteSettings
    config: Path
    hypervisor: LibvirtHypervisor

    def doctor(self) -> dict[str, Any]:
        """The doctor's line about the start guard, by its own process."""
        done = subprocess.run(
            [sys.executable, "-m", "vapor_desktop.site.dispatch", "doctor", "--json"],
            env={**os.environ, "VAPOR_SITE_CONFIG": str(self.config)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout, f"exit code {done.returncode}: {done.stderr}"
        return dict(next(check for check in json.loads(done.stdout) if check["name"] == "start guard"))

    def put(self, state: GuardState) -> None:
        owner = "here" if state is GuardState.OWN else "there"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        record = GuardRecord(
            vm_uuid=VM, vm_name="web01", epoch=Epoch(number=2, owner=owner), this_site="here", peer_site="there",
            state=state, confirmed_boot_id=boot, reason="failed over to site-b", changed_at=datetime.now(UTC),
            changed_by="test",
        )  # fmt: skip
        self.settings.guard_dir.mkdir(parents=True, exist_ok=True)
        (self.settings.guard_dir / f"{VM}.json").write_text(record.model_dump_json())

    def proofs_left(self) -> list[str]:
        return [domain.name for domain in self.hypervisor.domains() if "proof" in domain.name]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("host")
    with private_host(root) as host:
        values = {
            "state_dir": str(root / "state"),
            "libvirt_uri": host.uri,
            "libvirt_hook_dir": str(host.outside("/etc/libvirt/hooks/qemu.d")),
        }
        config = root / "site.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        (root / "state").mkdir()
        hypervisor = LibvirtHypervisor(host.uri)
        settings = SiteSettings(
            state_dir=root / "state",
            libvirt_uri=host.uri,
            libvirt_hook_dir=host.outside("/etc/libvirt/hooks/qemu.d"),
        )
        yield Bench(host, settings, config, hypervisor)
        hypervisor.close()


def test_a_file_that_libvirt_was_not_told_of_is_off_and_a_reload_turns_it_on(bench: Bench) -> None:
    assert "not installed" in bench.doctor()["found"]
    install(bench.settings)
    told = bench.doctor()
    assert not told["ok"]
    assert "reload" in told["fix"]
    assert not prove(bench.settings, bench.hypervisor)  # it started, paused, and is gone again
    assert bench.proofs_left() == []
    bench.host.run("sh", "-c", f"kill -{int(signal.SIGHUP)} $(cat /run/libvirt/private.pid)")
    wait_for(lambda: prove(bench.settings, bench.hypervisor), "the hook after the reload")
    assert bench.proofs_left() == []
    assert bench.doctor()["ok"]


def test_it_survives_a_restart_of_libvirt(bench: Bench) -> None:
    bench.host.restart_libvirtd()
    assert prove(bench.settings, bench.hypervisor)


def test_what_is_refused_and_what_is_not(bench: Bench) -> None:
    for vm, name in ((VM, "web01"), (FREE, "free")):
        bench.hypervisor.define(domain_xml(name, {}, vm_uuid=vm))
    bench.put(GuardState.OTHERS)
    with pytest.raises(StartFailed, match=r"another site owns it since epoch 2 \(failed over to site-b\)"):
        bench.hypervisor.start(VM)
    bench.hypervisor.start(FREE)
    bench.put(GuardState.OWN)
    bench.hypervisor.start(VM)
    bench.put(GuardState.OTHERS)
    bench.host.restart_libvirtd()  # "reconnect": a refusal there would kill what runs
    assert bench.hypervisor.domain(VM).state == "running"
    bench.host.run("virsh", "managedsave", "web01")
    with pytest.raises(StartFailed, match="another site owns it"):  # "restore"
        bench.hypervisor.start(VM)
    assert bench.hypervisor.domain(VM).managed_save
    bench.put(GuardState.OWN)
    bench.hypervisor.start(VM)
    assert bench.hypervisor.domain(VM).state == "running"


def test_taken_away_it_is_off_at_once(bench: Bench) -> None:
    hook_path(bench.settings).unlink()
    assert not proven(bench.settings)
    assert not bench.doctor()["ok"]
