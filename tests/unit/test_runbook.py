"""The runbook: what it says, that its commands do it (real qemu-img, real shell), and when it is written again."""

from __future__ import annotations

import getpass
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from replica_bench import MIB, SOURCE, TARGET, VM, Bench, Source, read_image
from site_server import SiteServer, running_site

from vapor_desktop.model import runbook
from vapor_desktop.model.errors import Conflict, ParentMoved
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.policy import Mappings
from vapor_desktop.model.runbook import BRING_UP, UNDO, Facts, commands
from vapor_desktop.model.wire import Runbook, RunRequest, SettingsWrite

NOON = datetime(2026, 11, 1, 13, 0, tzinfo=UTC)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "replicas", Source(vda=2 * MIB, vdb=MIB))
    bench.root.mkdir()
    bench.create()
    bench.cycle()
    bench.cycle()
    return bench


def facts(bench: Bench, **changes: object) -> Facts:
    """Of the newest point, as the site service gathers them."""
    m = bench.manifest
    folder = str(bench.root / VM)
    newest = m.newest
    assert newest is not None
    home = f"{folder}/run/{runbook.by_hand(m.epoch.number + 1, newest.seq)}"
    base = Facts(
        manifest=m.model_copy(update={"mappings": Mappings(networks={"lan a": "lan-b"})}),
        written_at=newest.current_as_of + timedelta(seconds=7),
        here="site-b",
        source="site-a",
        source_address="192.0.2.1",
        libvirt_uri="test:///default",
        folder=folder,
        point=newest,
        points=m.points,
        xml_path=f"{folder}/runbook/domain.xml",
        disks={disk: f"{home}/{disk}.qcow2" for disk in newest.files},
        nvram=f"{home}/nvram.fd",
        networks=("lan-b",),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def shell(lines: list[str]) -> str:
    done = subprocess.run(["sh", "-euxc", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_names_what_a_person_must_know(bench: Bench) -> None:
    text = runbook.write(facts(bench, notes=("Its firmware is /x",)))
    head = text.split("IS IT REALLY OFF?")[0]
    for word in (
        "RUNBOOK: vm",
        VM,
        "from site-a to site-b",
        "Recovery point 2",
        "crash-consistent",
        "7 s old when this was written",
        "never proven",
        "lan-b (at site-a: lan a)",
        "Note: Its firmware is /x.",
        "Other points, each with `vapor-site runbook vm --point N`: 1 (",
        "vapor-site failover vm --point 2 --reason",
        "belongs to site-a",
    ):
        assert word in head, word
    assert "ssh root@192.0.2.1 virsh -c test:///default destroy" in text
    assert f"{VM}/runbook/domain.xml" in text
    assert all(part in text.splitlines() for part in runbook.PARTS)


def test_a_point_that_is_not_what_it_was_is_said(bench: Bench) -> None:
    assert "DID NOT MATCH" not in runbook.write(facts(bench))
    newest = bench.manifest.newest
    assert newest is not None
    bad = newest.model_copy(update={"verified": False})
    assert "ITS DATA DID NOT MATCH ITS DIGESTS" in runbook.write(facts(bench, point=bad))


def test_without_a_point_there_is_nothing_to_type(bench: Bench) -> None:
    text = runbook.write(facts(bench, point=None))
    assert "nothing to bring up here" in text
    assert not any(commands(text, part) for part in runbook.PARTS)


def test_its_commands_make_overlays_that_read_as_the_point_and_undo_keeps_them(bench: Bench) -> None:
    """All of it but virsh, in a shell, as they stand there."""
    text = runbook.write(facts(bench))
    made = [line for line in commands(text, BRING_UP) if "virsh" not in line]
    before = {p: p.read_bytes() for p in (bench.root / VM / "disks").iterdir()}
    shell(made)
    home = bench.root / VM / "run" / "by-hand-e2-p2"
    assert sorted(p.name for p in home.iterdir()) == ["nvram.fd", "vda.qcow2", "vdb.qcow2"]
    assert home.stat().st_mode & 0o7777 == 0o2770
    assert {p.stat().st_mode & 0o777 for p in home.iterdir()} == {0o660}
    assert (home / "nvram.fd").read_bytes() == b"NVRAM"
    for disk, content in bench.expected[2].items():
        assert read_image(home / f"{disk}.qcow2") == content
    assert {p: p.read_bytes() for p in (bench.root / VM / "disks").iterdir()} == before
    again = subprocess.run(["sh", "-ec", "\n".join(made)], capture_output=True)
    assert again.returncode != 0, "a second time must not write over what a VM may have written"
    bench.store.reconcile(VM)
    assert home.is_dir(), "nothing of ours takes it for a leftover"
    [moved] = [line for line in commands(text, UNDO) if "virsh" not in line]
    shell([moved])
    assert not home.exists()
    [kept] = home.parent.glob("by-hand-e2-p2-undone-*")
    assert (kept / "vda.qcow2").exists()
    assert commands(text, UNDO)[0].startswith("virsh -c test:///default domstate")


def test_names_with_blanks_are_quoted(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "my replicas", Source(vda=MIB))
    bench.root.mkdir()
    bench.create()
    bench.cycle()
    text = runbook.write(facts(bench, networks=("lan b",)))
    shell([line for line in commands(text, BRING_UP) if "virsh" not in line])
    assert (bench.root / VM / "run" / "by-hand-e2-p1" / "vda.qcow2").exists()
    assert any(line.endswith("grep -qFx 'lan b'") for line in commands(text, BRING_UP))


def test_tpm_and_a_guard_that_would_refuse_have_their_lines(bench: Bench) -> None:
    up = commands(runbook.write(facts(bench, tpm_root="/t", refused="another site owns it")), BRING_UP)
    assert up.index(f"test ! -e /t/{VM} || mv /t/{VM} /t/{VM}.by-hand-e2-p2") < up.index(
        f"tar -x -f {bench.root}/{VM}/points/000002/tpm.tar -C /t/{VM}"
    )
    assert f"vapor-site guard override {VM} --reason 'brought up by hand'" in up
    plain = commands(runbook.write(facts(bench)), BRING_UP)
    assert not [line for line in plain if line.split()[0] in ("tar", "vapor-site")]
    assert "--keep-tpm" in " ".join(commands(runbook.write(facts(bench, tpm_root="/t")), UNDO))


# --- the service keeps it ------------------------------------------------------------------------------
@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteServer]:
    with running_site(tmp_path / "site", user=getpass.getuser()) as running:
        yield running


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_the_service_writes_it_after_every_change_and_shows_it(site: SiteServer) -> None:
    bench = Bench(site.directory / "replicas", Source(vda=MIB))
    bench.create()
    path = bench.root / VM / "runbook" / "runbook.txt"

    def says(*wanted: str) -> bool:
        return path.exists() and all(word in path.read_text() for word in wanted)

    wait_for(lambda: says("nothing to bring up here"), "a runbook of a replica without points")
    bench.cycle()
    wait_for(lambda: says("Recovery point 1:", "Settings version 1."), "the first point")
    bench.cycle()
    wait_for(lambda: says("Recovery point 2:"), "the second point")
    mappings = Mappings(networks={"lan a": "lan-b"})
    bench.store.write_settings(
        VM, SettingsWrite(grant=bench.grant(), expect_version=1, policy=bench.manifest.policy, mappings=mappings)
    )
    wait_for(lambda: says("Settings version 2."), "the edit")
    named = next(w for w in path.read_text().split() if "/runbook/domain-e2-p2-" in w)
    xml = Path(named.rstrip(".")).read_text()
    assert 'epoch="2" point="2"' in xml
    console, _ = site.paired("view")
    with console:
        shown = Runbook.model_validate(console.get(f"/replicas/{VM}/runbook").json())
        older = Runbook.model_validate(console.get(f"/replicas/{VM}/runbook?point=1").json())
        assert console.get(f"/replicas/{VM}/runbook?point=9").status_code == 404
    assert (shown.seq, shown.path, older.seq) == (2, str(path), 1)
    assert "Recovery point 1:" in older.text
    assert path.read_text() == shown.text, "asking for the newest one writes it down too"
    assert "\nRecovery point 1:" in site.admin("runbook", "vm", "--point", "1")
    site.admin("runbook", "nobody", code=1)
    request = RunRequest(fence=1, new_epoch=Epoch(number=2, owner=TARGET), seq=2, reason="dark")
    bench.store.run(VM, request)
    wait_for(lambda: says("Epoch 2", "taken over here already"), "the take-over")
    assert path.stat().st_mode & 0o777 == 0o660
    assert len(list(path.parent.glob("domain-*.xml"))) <= 8


def test_a_failover_that_would_not_start_here_changes_nothing(site: SiteServer) -> None:
    """libvirt's test driver has no machine for it. What starts is proven on the lab's hosts."""
    bench = Bench(site.directory / "replicas", Source(vda=MIB))
    bench.create()
    bench.cycle()
    before = bench.manifest
    site.admin("failover", "vm", "--reason", " ", code=1)
    site.admin("failover", "vm", code=2)
    site.admin("failover", "nobody", "--reason", "dark", code=1)
    site.admin("failover", "vm", "--point", "7", "--reason", "dark", code=1)
    site.admin("failover", "vm", "--reason", "dark", code=1)
    assert bench.manifest == before
    assert not (site.state / "leases" / f"{VM}.json").exists(), "not even a lease was taken over"
    assert not (site.state / "audit.log").exists()


def test_a_replica_with_a_runbook_can_be_deleted(bench: Bench) -> None:
    bench.store.keep_runbook(bench.manifest, "RUNBOOK", "domain-e2-p2-12345678.xml", "<domain/>")
    with pytest.raises(ParentMoved):
        bench.store.keep_runbook(bench.manifest.model_copy(update={"generation": 1}), "old", "", "")
    bench.store.delete(VM, bench.grant())
    assert bench.store.vms() == []


# --- a later failover takes over what was done by hand ------------------------------------------------
def run_by_hand(root: Path, used: list[Path]) -> Bench:
    bench = Bench(root / "replicas", Source(vda=2 * MIB), in_use=lambda: used)
    bench.root.mkdir()
    bench.create()
    bench.cycle()
    bench.cycle()
    shell([line for line in commands(runbook.write(facts(bench)), BRING_UP) if "virsh" not in line])
    return bench


def take_over(bench: Bench, seq: int) -> dict[str, str]:
    request = RunRequest(fence=1, new_epoch=Epoch(number=2, owner=TARGET), seq=seq, reason="dark")
    run = bench.store.run(VM, request)
    assert bench.store.run(VM, request) == run
    assert run.nvram is not None
    assert Path(run.nvram).parent == Path(run.disks["vda"]).parent
    return {disk: str(Path(path).relative_to(bench.root / VM)) for disk, path in run.disks.items()}


def test_a_failover_takes_over_the_overlays_that_a_vm_uses(tmp_path: Path) -> None:
    used: list[Path] = []
    bench = run_by_hand(tmp_path, used)
    overlay = bench.root / VM / "run" / "by-hand-e2-p2" / "vda.qcow2"
    used.append(overlay)
    with pytest.raises(Conflict, match="by-hand-e2-p2"):
        take_over(bench, 1)
    assert bench.manifest.epoch == Epoch(number=1, owner=SOURCE)
    assert take_over(bench, 2) == {"vda": "run/by-hand-e2-p2/vda.qcow2"}
    assert bench.manifest.epoch == Epoch(number=2, owner=TARGET)


def test_overlays_that_no_vm_uses_are_left_alone(tmp_path: Path) -> None:
    bench = run_by_hand(tmp_path, [])
    assert take_over(bench, 2) == {"vda": "run/2/vda.qcow2"}
    assert (bench.root / VM / "run" / "by-hand-e2-p2" / "vda.qcow2").exists()
