"""The start guard after a boot: what a site does with its peer's word. Real records, a libvirt of ours."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vapor_desktop.model import guard
from vapor_desktop.model.domains import DomainView
from vapor_desktop.model.errors import DomainNotFound, HypervisorUnreachable, SiteUnreachable, StartFailed, VaporError
from vapor_desktop.model.manifest import Epoch
from vapor_desktop.model.wire import GuardRecord, GuardState, OwnerWord
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.guard_book import PROOF_NAME, GuardBook
from vapor_desktop.site.guard_hook import fingerprint, hook_path, hook_text, prove, proven
from vapor_desktop.site.guard_keeper import LONGEST_WAIT_S, RECHECK_S, GuardKeeper
from vapor_desktop.site.leases import boot_id
from vapor_desktop.site.settings import AlarmTargets, SiteSettings
from vapor_desktop.site.site_events import EventLog, event

VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"
OTHER = "9f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"
A, B = "aaaaaaaa-0000-4000-8000-000000000000", "bbbbbbbb-0000-4000-8000-000000000000"
OLD = "00000000-0000-4000-8000-00000000b007"
YOURS = OwnerWord(epoch=Epoch(number=1, owner=A), runs=False)
MINE = OwnerWord(epoch=Epoch(number=2, owner=B), runs=True)


@dataclass
class Libvirt:
    """A host with domains that start when told."""

    domains: dict[str, DomainView] = field(default_factory=dict)
    trouble: VaporError | None = None
    start_trouble: VaporError | None = None

    def add(self, vm: str = VM, autostart: bool = True) -> None:
        self.domains[vm] = DomainView(
            vm, "web01", "shutoff", None, True, autostart, (), (), (), False, None, None, False, "q35", False, None
        )

    def domain(self, vm_uuid: str) -> DomainView:
        if self.trouble:
            raise self.trouble
        if vm_uuid not in self.domains:
            raise DomainNotFound("no such VM")
        return self.domains[vm_uuid]

    def start(self, vm_uuid: str, *, paused: bool = False) -> None:
        if self.start_trouble:
            raise self.start_trouble
        self.domains[vm_uuid] = replace(self.domains[vm_uuid], state="running", live_id=1)

    def set_autostart(self, vm_uuid: str, on: bool) -> None:
        self.domains[vm_uuid] = replace(self.domains[vm_uuid], autostart=on)


@dataclass
class Bench:
    """A keeper on real files, with a clock of its own."""

    settings: SiteSettings
    libvirt: Libvirt
    events: EventLog
    words: dict[str, OwnerWord | VaporError]
    dark: bool = False
    now: float = 1000.0
    asked: list[tuple[str, ...]] = field(default_factory=list)
    trouble: str | None = None  # why the hook cannot be tried
    tried_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.book = GuardBook(self.settings, AuditLog(self.settings.audit_log))
        self.restart()

    def restart(self) -> None:
        """A new life of the service."""
        self.keeper = GuardKeeper(
            self.book,
            self.libvirt,
            self.events,
            ask=self.ask,
            peer_name=lambda _site: "site-b",
            prove=self.prove,
            patience_s=self.settings.guard_patience_s,
            now_s=lambda: self.now,
        )

    def prove(self) -> str | None:
        self.tried_at.append(self.now)
        return self.trouble

    def ask(self, site: str, vms: Sequence[str], stop: threading.Event) -> Mapping[str, OwnerWord | VaporError]:
        assert site == B
        self.asked.append(tuple(vms))
        if self.dark:
            raise SiteUnreachable("site-b does not answer")
        return {vm: self.words[vm] for vm in vms}

    def put(self, vm: str = VM, **change: object) -> None:
        base: dict[str, object] = {
            "vm_uuid": vm, "vm_name": "web01", "epoch": Epoch(number=1, owner=A), "this_site": A, "peer_site": B,
            "state": GuardState.OWN, "confirmed_boot_id": OLD, "reason": "protected to site-b",
            "changed_at": datetime.now(UTC), "changed_by": "desk",
        }  # fmt: skip
        record = GuardRecord.model_validate(base | change)
        self.settings.guard_dir.mkdir(parents=True, exist_ok=True)
        (self.settings.guard_dir / f"{vm}.json").write_text(record.model_dump_json())

    def tick(self, after_s: float = 0.0) -> GuardRecord:
        self.now += after_s
        self.keeper.tick()
        return self.book.get(VM)

    def told(self) -> list[str]:
        return [item.what for item in self.events.since(None)]

    @property
    def state(self) -> tuple[str, bool]:
        domain = self.libvirt.domains[VM]
        return domain.state, domain.autostart


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    settings = SiteSettings(state_dir=tmp_path / "state", guard_patience_s=30, libvirt_hook_dir=tmp_path / "qemu.d")
    events = EventLog(settings.events_file, AlarmTargets(), "alpha")
    made = Bench(settings, Libvirt(), events, {VM: YOURS, OTHER: YOURS})
    made.libvirt.add()
    return made


def test_yours_starts_once_what_autostart_wanted(bench: Bench) -> None:
    bench.put()
    after = bench.tick()
    assert guard.may_start(after, boot_id())
    assert bench.state == ("running", True)
    assert bench.told() == ["guard-started"]
    bench.libvirt.add()  # a person shuts it down
    bench.restart()
    bench.tick(10)
    assert bench.state == ("shutoff", True)


def test_without_autostart_it_may_start_and_does_not(bench: Bench) -> None:
    bench.libvirt.add(autostart=False)
    bench.put()
    assert guard.may_start(bench.tick(), boot_id())
    assert bench.state == ("shutoff", False)
    assert bench.told() == []


def test_taken_over_there_it_stays_off_and_autostart_is_owed(bench: Bench) -> None:
    bench.put()
    bench.words[VM] = MINE
    after = bench.tick()
    assert (after.state, after.was_autostart) == (GuardState.OTHERS, True)
    assert bench.state == ("shutoff", False)
    assert bench.told() == ["guard-held"]
    asked = len(bench.asked)
    bench.tick(10 * RECHECK_S)
    assert len(bench.asked) == asked  # a person or an engine brings it back, nobody else is asked

    taken = bench.book.override(VM, "site b burnt down", None)
    assert taken.epoch == Epoch(number=3, owner=A)
    home = bench.tick(1)
    assert bench.state == ("shutoff", True)  # autostart is given back; a person starts it
    assert not home.was_autostart


def test_a_silent_peer_is_asked_again_with_longer_waits(bench: Bench) -> None:
    bench.put()
    bench.dark = True
    assert not guard.may_start(bench.tick(), boot_id())
    for _ in range(600):
        bench.tick(1)
    assert 600 / LONGEST_WAIT_S <= len(bench.asked) <= 600 / LONGEST_WAIT_S + 8
    assert bench.told() == ["guard-held"]  # once, not at every question
    assert bench.state == ("shutoff", True)
    bench.dark = False
    bench.tick(LONGEST_WAIT_S)
    assert bench.state == ("running", True)
    assert bench.told() == ["guard-held", "guard-released", "guard-started"]
    asked = len(bench.asked)
    bench.tick(RECHECK_S - 1)
    assert len(bench.asked) == asked
    bench.words[VM] = MINE  # taken over there while the link was cut
    assert bench.tick(1).state is GuardState.OTHERS
    assert bench.state[0] == "running"  # never stopped by us


def test_policy_start_waits_its_patience_and_tells_the_risk(bench: Bench) -> None:
    bench.put(policy="start")
    bench.dark = True
    for _ in range(30):
        assert not guard.may_start(bench.tick(1), boot_id())
    for _ in range(32):
        bench.tick(1)
    assert bench.state == ("running", True)
    assert bench.book.get(VM).at_risk
    assert bench.told() == ["guard-risk", "guard-started"]
    bench.dark = False
    assert not bench.tick(LONGEST_WAIT_S).at_risk
    assert bench.told()[-1] == "guard-released"


def test_many_vms_are_one_question(bench: Bench) -> None:
    bench.put()
    bench.put(OTHER, vm_name="db01")
    bench.words[OTHER] = SiteUnreachable("its manifest is damaged")
    bench.tick()
    assert bench.asked == [(OTHER, VM)]
    assert bench.state == ("running", True)
    assert not guard.may_start(bench.book.get(OTHER), boot_id())  # one VM's trouble holds that one only


def test_libvirt_that_is_not_up_yet_is_tried_again(bench: Bench) -> None:
    bench.put()
    bench.libvirt.trouble = HypervisorUnreachable("not yet")
    assert bench.tick().start_due
    bench.restart()  # killed between the peer's word and the start
    bench.libvirt.trouble = None
    assert not bench.tick(1).start_due
    assert bench.state == ("running", True)


def test_a_start_that_fails_is_told_once(bench: Bench) -> None:
    bench.put()
    bench.libvirt.start_trouble = StartFailed("no network")
    bench.tick()
    bench.tick(1)
    assert bench.told() == ["guard-failed"]


def test_a_guarded_vm_that_is_not_defined_troubles_nobody(bench: Bench) -> None:
    bench.put()
    bench.libvirt.domains.clear()
    assert guard.may_start(bench.tick(), boot_id())
    assert bench.told() == []


def test_moving_switches_autostart_off_and_the_undo_gives_it_back(bench: Bench) -> None:
    bench.put(confirmed_boot_id=boot_id(), state="moving", operation_id="op")
    assert bench.keeper.settle(VM).was_autostart
    assert bench.state == ("shutoff", False)
    bench.put(confirmed_boot_id=boot_id(), was_autostart=True)
    assert not bench.keeper.settle(VM).was_autostart
    assert bench.state == ("shutoff", True)


def test_a_damaged_record_does_not_stop_the_others(bench: Bench) -> None:
    bench.put()
    (bench.settings.guard_dir / f"{OTHER}.json").write_text("{")
    bench.tick()
    assert bench.state == ("running", True)


def test_another_process_adds_events_that_are_read_here(bench: Bench) -> None:
    bench.events.add(event(VM, "guard-held", "one"))
    cli = EventLog(bench.settings.events_file, AlarmTargets(), "alpha")
    cli.add(event(VM, "guard-override", "two"))
    cli.close()
    bench.events.add(event(VM, "guard-started", "three"))
    assert [item.why for item in bench.events.since(None)] == ["one", "two", "three"]
    assert len(bench.settings.events_file.read_text().splitlines()) == 3


# --- the proof --------------------------------------------------------------------------------------
@dataclass
class Hooked:
    """libvirt that asks the installed hook (or not), as the real one does."""

    settings: SiteSettings
    asks: bool = True
    seen: list[GuardRecord] = field(default_factory=list)

    def try_start(self, xml: str) -> str | None:
        book = GuardBook(self.settings, AuditLog(self.settings.audit_log))
        assert book.all() == []  # nobody else sees the throw-away VM
        [path] = self.settings.guard_dir.glob("*.json")
        record = GuardRecord.model_validate_json(path.read_bytes())
        assert record.vm_uuid in xml
        assert record.vm_name.startswith(PROOF_NAME)
        self.seen.append(record)
        return f"Hook script execution failed: {guard.refusal(record, boot_id())}" if self.asks else None


def install(settings: SiteSettings) -> Path:
    path = hook_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(hook_text(settings.guard_dir))
    path.chmod(0o755)
    return path


def test_a_hook_that_could_not_be_tried_is_tried_again_soon_and_else_now_and_then(bench: Bench) -> None:
    def run(seconds: int) -> list[float]:
        bench.tried_at.clear()
        for _ in range(seconds):
            bench.keeper.prove_when_due()
            bench.now += 1
        return [at - bench.tried_at[0] for at in bench.tried_at]

    bench.trouble = "libvirt does not answer"
    assert run(100) == [0, 5, 15, 35, 75]
    bench.trouble = None
    bench.now += 600
    assert run(1201) == [0, 600, 1200]
    bench.trouble = "libvirt does not answer"
    bench.now += 600
    assert run(10) == [0, 5]


def test_only_a_refusal_proves_and_only_for_this_hook(bench: Bench) -> None:
    settings = bench.settings
    assert not prove(settings, Hooked(settings))
    assert not proven(settings)
    path = install(settings)
    assert (fingerprint(settings) is not None) == (path.stat().st_uid == 0)
    if path.stat().st_uid != 0:
        return  # the hook must be root's; as another user it is never proven
    assert not proven(settings)  # a file in place proves nothing
    assert prove(settings, Hooked(settings))
    assert proven(settings)
    assert list(settings.guard_dir.glob("*.json")) == []
    assert "sha256" in json.loads(settings.guard_proof.read_text())
    path.write_text(path.read_text() + "# changed\n")
    assert not proven(settings)
    assert prove(settings, Hooked(settings))
    assert not prove(settings, Hooked(settings, asks=False))
    assert not proven(settings)
    install(settings).chmod(0o777)
    assert not prove(settings, Hooked(settings))
